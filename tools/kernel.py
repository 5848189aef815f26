"A kernel that listens on no port."
import os
import uuid
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import default


class LocalKernel(AsyncKernelManager):
    "Talks through files of this user where the system can (not on Windows), so that no other user can listen"
    @default('transport')
    def _transport(self): return 'tcp' if os.name == 'nt' else 'ipc'

    @default('ip')
    def _ip(self):
        if self.transport == 'tcp': return '127.0.0.1'
        folder = Path(jupyter_runtime_dir())
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder/f'k{uuid.uuid4().hex[:12]}')
