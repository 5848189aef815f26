"""From the key to the pixels: the Viewer beside four others, in a real JupyterLab under headless Chromium

    python benchmarks/viewer.py                 all that is installed (ipympl and ipyniivue are extra)
    python benchmarks/viewer.py --rounds 2      fewer keys
    python benchmarks/viewer.py --only ours     without the others

A volume of 256 cubed with one layer of labels; each viewer has a notebook and a kernel of its own, and all stay
open. Real keys, one after the other, in rounds that take turns. What is measured, in the page and for all alike:

- from: `timeStamp` of the keydown event, when the browser received the key;
- to: the first moment at which a row of pixels of the visible picture, read back, is another than before the key.
  Reading forces whatever is still to be drawn, WebGL included; a picture from the kernel is decoded first.
- frame: the same, and on to the next frame of the screen that holds those pixels (two animation frames).
- the browser: what it says itself, Event Timing, from the key to the next paint, in steps of 8 ms.

First picture: from the keydown that runs the cell. Memory: what the page holds more once the picture is there.
"""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse
import importlib.metadata
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from live import chromium, client_of, jupyter, launched, lay, visited, webgl

LOAD = """import numpy as np
image, mask = np.load('NAME-image.npy'), np.load('NAME-mask.npy')
n, low, high = image.shape[2], -100, 1200"""

LOOK = """def pair(k): return image[:, :, k].T, np.ma.masked_equal(mask[:, :, k].T, 0)
gray, red = dict(cmap='gray', vmin=low, vmax=high), dict(cmap='autumn', vmin=0, vmax=3, alpha=.35)"""

# name: (cell that prepares, cell that shows, what is seen, what takes the keys, key, distribution)
PEERS = {
    'ours': ('from medseg_nb.view.viewer import Viewer', 'Viewer(image, mask)',
             '.mnb-tile:nth-child(3) .mnb-canvas', '.mnb-tile:nth-child(3) .mnb-canvas', 'ArrowUp', 'anywidget'),
    'niivue': ('from ipyniivue import NiiVue',
               "nv = NiiVue(height=400)\nnv.load_volumes([dict(path='middle-image.nii'),\n"
               "                 dict(path='middle-mask.nii', colormap='red', opacity=.35)])\nnv",
               '.jp-OutputArea canvas', '.jp-OutputArea canvas', 'k', 'ipyniivue'),
    'png': ('import io\nfrom ipywidgets import Image, IntSlider, VBox\nfrom PIL import Image as Pillow\n'
            'hue = np.array([[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115]])\n'
            'def png(k):\n'
            '    x = np.repeat(np.clip((image[:, :, k].T - low)*(255/(high - low)), 0, 255)[..., None], 3, 2)\n'
            '    m = mask[:, :, k].T\n'
            '    x[m > 0] = .65*x[m > 0] + .35*hue[m[m > 0]]\n'
            '    file = io.BytesIO()\n'
            "    Pillow.fromarray(x.astype('uint8')).save(file, 'PNG', compress_level=1)\n"
            '    return file.getvalue()',
            'slider, picture = IntSlider(n//2, 0, n - 1), Image(value=png(n//2))\n'
            "slider.observe(lambda c: setattr(picture, 'value', png(c.new)), 'value')\nVBox([slider, picture])",
            '.jp-OutputArea img', '.noUi-handle', 'ArrowRight', 'ipywidgets'),
    'ipympl': (f'%matplotlib widget\nimport matplotlib.pyplot as plt\nfrom ipywidgets import IntSlider\n{LOOK}',
               'fig, ax = plt.subplots()\nslider = IntSlider(n//2, 0, n - 1)\n'
               'a, b = [ax.imshow(x, **how) for x, how in zip(pair(n//2), (gray, red))]\n'
               'def look(change):\n'
               '    for drawn, x in zip((a, b), pair(change.new)): drawn.set_data(x)\n'
               '    fig.canvas.draw_idle()\n'
               "slider.observe(look, 'value')\ndisplay(slider)",
               '.jupyter-matplotlib canvas', '.noUi-handle', 'ArrowRight', 'ipympl'),
    'interact': (f'%matplotlib inline\nimport matplotlib.pyplot as plt\nfrom ipywidgets import interact\n{LOOK}',
                 '@interact(k=(0, n - 1))\ndef look(k=n//2):\n'
                 '    for x, how in zip(pair(k), (gray, red)): plt.imshow(x, **how)\n    plt.show()',
                 '.jp-OutputArea .widget-output img', '.noUi-handle', 'ArrowRight', 'matplotlib'),
}
TITLES = dict(ours='`Viewer`', niivue='ipyniivue (WebGL)', png='`ipywidgets.Image`, a PNG a slice',
              ipympl='ipympl', interact='`interact` and matplotlib')

# Everything that may draw is told apart by a microtask: it runs when the script that drew has ended
PROBE = r"""(() => {
  const now = () => performance.now(), probe = window.probe = { timings: [] }
  const seen = () => [...document.querySelectorAll(probe.selector)].find(x => x.isConnected)
  const scratch = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
  function row(node) {  // pixels of one row, four tenths down
    if (!node) return null
    const w = node.naturalWidth ?? node.width, h = node.naturalHeight ?? node.height, y = Math.round(.4 * h)
    if (!w || !h) return null
    if (node.tagName === 'IMG') {
      scratch.canvas.width = w; scratch.canvas.height = 1
      scratch.drawImage(node, 0, y, w, 1, 0, 0, w, 1)
      return scratch.getImageData(0, 0, w, 1).data
    }
    if (node.gl) {
      const data = new Uint8Array(4 * w)
      node.gl.readPixels(0, h - y, w, 1, node.gl.RGBA, node.gl.UNSIGNED_BYTE, data)
      return data
    }
    return node.getContext('2d').getImageData(0, y, w, 1).data
  }
  const sum = data => data && data.reduce((h, x) => (h ^ x) * 16777619 >>> 0, 2166136261)
  const varied = data => data && new Set(data).size > 20
  let waiting = false
  function look() {
    waiting = false
    if (!probe.from || probe.to) return
    const start = now(), node = seen(), data = node && node !== probe.unlike && row(node)
    if (!data || !varied(data) || sum(data) === probe.before) return
    probe.drawn = start
    probe.to = now()
    requestAnimationFrame(() => requestAnimationFrame(() => { probe.frame = now(); probe.done() }))
  }
  const soon = () => { if (!waiting && probe.from && !probe.to) { waiting = true; queueMicrotask(look) } }
  function hook(type, names, keep) {
    for (const name of names) {
      const old = type.prototype[name]
      type.prototype[name] = function (...args) {
        if (keep) this.canvas.gl = this
        const out = old.apply(this, args)
        if (this !== scratch) soon()
        return out
      }
    }
  }
  hook(CanvasRenderingContext2D, ['drawImage', 'putImageData'])
  hook(WebGL2RenderingContext, ['drawArrays', 'drawElements'], true)
  new MutationObserver(() => {
    const node = probe.from && !probe.to && seen()
    if (node?.tagName === 'IMG' && node.src !== probe.src) node.decode().then(look, () => {})
  }).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ['src'] })
  window.addEventListener('keydown', event => {
    if (!probe.armed || event.key === 'Control') return
    probe.armed = false
    probe.from = event.timeStamp
    probe.dispatched = now()
  }, true)
  new PerformanceObserver(list => { for (const e of list.getEntries()) if (e.name === 'keydown') probe.timings.push(e.duration) })
    .observe({ type: 'event', durationThreshold: 16 })
  probe.tasks = []
  new PerformanceObserver(list => { for (const e of list.getEntries()) probe.tasks.push([e.startTime, e.duration]) })
    .observe({ type: 'longtask' })
  probe.arm = (selector, first) => {
    Object.assign(probe, { selector, from: 0, to: 0, drawn: 0, frame: 0 })
    const node = seen()
    probe.before = first ? null : sum(row(node))
    probe.src = first ? null : node?.src
    probe.unlike = first ? node : null
    probe.finished = new Promise(done => { probe.done = done })
    probe.armed = true
  }
  probe.result = async () => {
    const late = new Promise((_, no) => setTimeout(() => no(new Error('no new picture in 3 minutes')), 180000))
    await Promise.race([probe.finished, late])
    const { from, dispatched, drawn, to, frame } = probe
    return [to - from, drawn - dispatched, to - drawn, frame - from]
  }
})()"""


def save(home, name, shape):
    "A ball with texture, and three labels with wavy edges"
    rng, axes = np.random.default_rng(0), [np.linspace(-1, 1, s, dtype='float32') for s in shape]
    z, y, x = np.meshgrid(*axes[::-1], indexing='ij', sparse=True)
    r = np.sqrt(x**2 + y**2 + z**2)
    image = np.where(r < .9, 800 - 500*r, -50).astype('int16')
    image += rng.integers(0, 120, (16, *image.shape[1:]), 'int16').repeat(-(-len(image)//16), 0)[:len(image)]
    image += (np.arange(len(image)) % 16).astype('int16')[:, None, None]
    wavy = r + .05*np.sin(9*x + 5*z)*np.cos(8*y)
    mask = sum((wavy < limit).astype('uint8') for limit in (.35, .55, .75))
    for word, v in dict(image=image, mask=mask).items():
        v = np.ascontiguousarray(v.T)
        np.save(home/'work'/f'{name}-{word}.npy', v)
        if name == 'middle': nibabel.save(nibabel.Nifti1Image(v, np.eye(4)), home/'work'/f'{name}-{word}.nii')


class Page:
    "One viewer in its notebook"
    def __init__(self, lab, browser, peer, volume='middle'):
        before, show, self.selector, self.target, self.key, _ = PEERS[peer]
        lay(lab, f'{peer}-{volume}.ipynb', f"{LOAD.replace('NAME', volume)}\n{before}", show)
        self.page = visited(lab, browser, f'{peer}-{volume}.ipynb', levels=('error', 'warning'), init=PROBE)
        self.cdp = self.page.context.new_cdp_session(self.page)
        self.lab, self.peer = lab, peer
        self.run(0)
        self.page.locator('.jp-Cell').nth(0).get_by_text('[1]:').first.wait_for(timeout=120_000)
        self.page.wait_for_timeout(500)

    def run(self, n):
        self.page.locator('.jp-Cell').nth(n).locator('.cm-content').click()
        self.page.keyboard.press('Control+Enter')

    def first(self):
        "Milliseconds from the key that runs the cell to the picture"
        self.page.locator('.jp-Cell').nth(1).locator('.cm-content').click()
        self.page.evaluate('selector => probe.arm(selector, true)', self.selector)
        self.page.keyboard.press('Control+Enter')
        out = self.page.evaluate('probe.result()')[0]
        self.page.wait_for_timeout(700)
        return out

    def held(self):
        "MB of the page: what its scripts hold, and all memory of its process"
        self.cdp.send('HeapProfiler.collectGarbage')
        heap = self.cdp.send('Runtime.getHeapUsage')
        root = self.page.context.browser.new_browser_cdp_session()
        pids = [p['id'] for p in root.send('SystemInfo.getProcessInfo')['processInfo'] if p['type'] == 'renderer']
        root.detach()
        lines = [x for p in pids for x in Path(f'/proc/{p}/status').read_text().splitlines() if x[:7] == 'RssAnon']
        own = (heap['usedSize'] + heap.get('backingStorageSize', 0) + heap.get('embedderHeapUsedSize', 0))
        return np.array([own/1e6, sum(int(x.split()[1]) for x in lines)/1024])

    def focus(self):
        self.page.bring_to_front()
        target = self.page.locator(self.target).first
        target.scroll_into_view_if_needed()
        target.evaluate("x => x.setAttribute('data-lm-suppress-shortcuts', '')")
        target.focus()
        self.page.wait_for_timeout(300)
        self.page.evaluate('probe.timings.length = 0')

    def keys(self, n):
        "A row for each of n keys: picture, script, reading, frame (ms); then what the browser says of all"
        self.focus()
        out = []
        for _ in range(n):
            self.page.evaluate('selector => probe.arm(selector)', self.selector)
            self.page.wait_for_timeout(random.uniform(20, 50))
            self.page.keyboard.press(self.key)
            out.append(self.page.evaluate('probe.result()'))
        self.page.wait_for_timeout(200)
        said = self.page.evaluate('probe.timings')
        return np.array(out), said + [8]*(n - len(said))


def silence(lab, page, stop, out):
    "The longest time for which the kernel did not answer, s"
    with client_of(lab, page) as client:
        out.append(0.)
        while not stop.is_set():
            start = time.perf_counter()
            client.execute('', silent=True, store_history=False, allow_stdin=False, reply=True, timeout=60)
            out[0] = max(out[0], time.perf_counter() - start)
            time.sleep(.01)


def large(lab, browser, keys):
    "512 x 512 x 300: does anything stand still?"
    save(lab['home'], 'large', (512, 512, 300))
    one, stop, quiet = Page(lab, browser, 'ours', 'large'), threading.Event(), []
    was, pid = one.held(), threading.Thread(target=silence, args=(lab, one.page, stop, quiet))
    pid.start()
    time.sleep(1.5)
    one.page.evaluate('probe.tasks.length = 0')
    first = one.first()
    one.page.wait_for_timeout(1500)
    tasks = [d for _, d in one.page.evaluate('probe.tasks')]
    stop.set()
    pid.join()
    held = one.held() - was
    seconds, _ = one.keys(keys)
    return dict(first=first, block=max(tasks, default=0), silence=1000*quiet[0], held=held,
                median=np.median(seconds[:, 0]), p95=np.percentile(seconds[:, 0], 95), said=one.page.said)


def installed(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None


def main(o):
    known = {p: installed(row[-1]) for p, row in PEERS.items() if o.only in (None, p)}
    for p, version in known.items():
        if not version: print(f'{PEERS[p][-1]} is not installed, and left out: pip install {PEERS[p][-1]}')
    with tempfile.TemporaryDirectory() as folder, jupyter(Path(folder)) as lab, chromium() as browser:
        graphics = launched(browser.browser_type, *webgl) if known.get('niivue') else None
        print('Chromium', browser.version, *(f'{PEERS[p][-1]} {v}' for p, v in known.items() if v), sep=', ')
        save(lab['home'], 'middle', (256,)*3)
        pages, start, memory, keys, said = {}, {}, {}, {}, {}
        for p in (p for p, version in known.items() if version):
            one = pages[p] = Page(lab, graphics if p == 'niivue' else browser, p)
            was = one.held()
            start[p] = [one.first()]
            memory[p] = one.held() - was
            start[p] += [one.first() for _ in range(o.firsts - 1)]
            one.keys(5)
        for _ in range(o.rounds):
            for p, one in pages.items():
                more, told = one.keys(50 if p == 'ours' else 20)
                keys.setdefault(p, []).append(more)
                said.setdefault(p, []).extend(told)
        keys = {p: np.concatenate(rows) for p, rows in keys.items()}
        middle = {p: np.median(rows[:, 0]) for p, rows in keys.items()}
        print('\n| 256 x 256 x 256 | median (ms) | 95 of 100 | `Viewer` is faster by | to the frame | first picture (s) | memory (MB) |')
        print('|---|---|---|---|---|---|---|')
        for p, rows in keys.items():
            ratio = '' if p == 'ours' else f'{middle[p]/middle["ours"]:.0f}'
            print(f'| {TITLES[p]} | {middle[p]:.1f} | {np.percentile(rows[:, 0], 95):.1f} | {ratio} | {np.median(rows[:, 3]):.0f} '
                  f'| {np.median(start[p])/1000:.2f} | {memory[p][0]:.0f} |')
        print()
        for p, rows in keys.items():
            print(f'{p:9} {len(rows)} keys; median and 95 %: dispatch to drawn {np.median(rows[:, 1]):.2f} '
                  f'{np.percentile(rows[:, 1], 95):.2f}, reading back {np.median(rows[:, 2]):.2f}, to the frame '
                  f'{np.median(rows[:, 3]):.1f} {np.percentile(rows[:, 3], 95):.1f}, Event Timing {np.median(said[p]):.0f} '
                  f'{np.percentile(said[p], 95):.0f} ms; first pictures {np.round(start[p]).astype(int)} ms; process +{memory[p][1]:.0f} MB')
        for p, one in pages.items():
            if one.page.said: print(p, 'console:', *one.page.said[:4], sep='\n    ')
            one.page.close()
        if o.only in (None, 'ours') and not o.small:
            out = large(lab, browser, 50)
            print(f"\n512 x 512 x 300: first picture {out['first']/1000:.2f} s; the page stood still for {out['block']:.0f} ms at "
                  f"most, the kernel for {out['silence']:.0f} ms; the page holds {out['held'][0]:.0f} MB (process +{out['held'][1]:.0f}); "
                  f"a key: {out['median']:.1f} ms, 95 %: {out['p95']:.1f}")
            if out['said']: print(*out['said'], sep='\n    ')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='of 50 keys of the Viewer and 20 of each other')
    parser.add_argument('--firsts', type=int, default=5, help='first pictures of each')
    parser.add_argument('--only', choices=PEERS)
    parser.add_argument('--small', action='store_true', help='leave out 512 x 512 x 300')
    main(parser.parse_args())
