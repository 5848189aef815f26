"A notebook as its reader should see it. As a script it is a Quarto filter: notebook in, notebook out."
import json
import re
import sys


TAGS = {'export': 'export', 'exports': 'export', 'exporti': 'export',
        'hide_input': 'remove-input', 'hide_output': 'remove-output'}


def page(nb:dict)->dict:
    "`nb` without hidden cells and nbdev's directives; cells that go into the package are tagged `export`"
    cells = []
    for cell in nb['cells']:
        if cell['cell_type'] == 'code':
            lines = ''.join(cell['source']).splitlines(keepends=True)
            flags = {m[1] for line in lines if (m := re.match(r'#\|\s*(\w+)', line))}
            source = ''.join(line for line in lines if not re.match(r'#\|', line)).strip('\n')
            if 'hide' in flags or not source: continue
            tags = cell['metadata'].get('tags', []) + sorted({TAGS[f] for f in flags if f in TAGS})
            cell = cell | {'source': source, 'metadata': cell['metadata'] | {'tags': tags}}
        cells.append(cell)
    return nb | {'cells': cells}


if __name__ == '__main__': json.dump(page(json.load(sys.stdin)), sys.stdout)
