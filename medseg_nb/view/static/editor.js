// ---------------------------------------------------------------- the editor
// The page's half of medseg_nb.view.editor. Strokes are painted here at once and numbered; Python, which has the truth,
// answers with how many it has seen, and with a box of labels where its truth differs from what this page knows.
// The protocol, field by field: the notebook of medseg_nb.view.editor.

const LATE = 6000 // ms without an answer before the page warns

const TOOLS = [
  ['cross', 'Cross', 'c', 'Look', 'Click or drag: the cross moves, nothing is painted.'],
  ['brush', 'Brush', 'b', 'Paint', 'Drag over the picture to paint.'],
  ['eraser', 'Eraser', 'e', 'Paint', 'Drag over the picture to erase, whatever the label.'],
  ['threshold', 'Range brush', 't', 'Paint', 'A brush that paints only voxels with values in the range.'],
  ['polygon', 'Polygon', 'p', 'Regions', 'Click the corners. Enter or a double click fills the polygon, Backspace takes the last corner back, Esc drops all.'],
  ['fill', 'Fill', 'l', 'Regions', 'Click into an area of one label, or of none: all of it that hangs together gets the chosen label.'],
  ['grow', 'Grow', 'g', 'Regions', 'Click: voxels that hang together and differ from this one by at most the tolerance.'],
  ['plus', '+ Point', 'm', 'Prompts', 'Click: this belongs to the object. Drag for many. Click on a point to take it away.'],
  ['minus', '\u2212 Point', 'n', 'Prompts', 'Click: this does not belong to the object. Drag for many. Click on a point to take it away.'],
  ['box', 'Box', 'x', 'Prompts', 'Drag a box around the object.'],
]
const STROKES = ['brush', 'eraser', 'threshold'], MARKS = ['plus', 'minus']

const drafts = new WeakMap() // model -> its draft: several views share one

class Draft {
  // The labels of a page: its own strokes at once, the kernel's answers when they come
  constructor(model, volume) {
    const layer = volume.layers.find(l => l.edited), [nx, ny] = volume.shape, n = volume.to_file.length, stride = [1, nx, nx * ny]
    const at = p => p.reduce((sum, x, a) => sum + Math.round(x) * stride[a], 0), zero = apply(volume.from_file, Array(n).fill(0))
    Object.assign(this, { model, volume, layer, codes: layer.codes, stride, views: new Set(), sent: 0, pending: [], open: null, words: '', answers: 0 })
    this.page = Math.random().toString(36).slice(2)
    // A voxel of the file (i, j, k) lies at base + i steps[0] + j steps[1] + k steps[2] among those of the page
    this.base = at(zero)
    this.steps = Array.from({ length: n }, (_, a) => at(apply(volume.from_file, Array.from({ length: n }, (_, b) => +(a === b)))) - this.base)
    this.state = layer.edited.state
    this.stamp = new Uint8Array(this.codes.length)
    this.counts = new Float64Array(2 ** layer.bits)
    for (const c of this.codes) this.counts[c]++
    model.on('msg:custom', (message, buffers) => { if (message.type === 'labels') this.take(message, buffers) })
    this.send({ type: 'here' })
  }

  set(i, label) {
    const old = this.codes[i]
    if (old === label) return
    this.counts[old]--; this.counts[label]++
    this.codes[i] = label
  }

  walk(low, size, steps, visit) {
    // All voxels of a box, its last axis fastest: visit(place among the voxels of the page, number in the box)
    const pad = (list, x) => [...Array(3 - list.length).fill(x), ...list], [l, s, d] = [pad(low, 0), pad(size, 1), pad(steps, 0)]
    let q = 0
    for (let a = 0; a < s[0]; a++) for (let b = 0; b < s[1]; b++) {
      let i = this.base + (l[0] + a) * d[0] + (l[1] + b) * d[1] + l[2] * d[2]
      for (let c = 0; c < s[2]; c++, i += d[2]) visit(i, q++)
    }
  }

  place(i) { return [i % this.stride[1], Math.floor(i % this.stride[2] / this.stride[1]), Math.floor(i / this.stride[2])] }

  pack(cells) {
    // A set of voxels as a box of the file and one bit for each of its voxels
    const { to_file } = this.volume, n = to_file.length, low = Array(n).fill(Infinity), high = Array(n).fill(-Infinity)
    const rows = to_file.map(row => row.map(Math.round)), [, nx, ny] = this.stride
    const files = cells.map(i => {
      const x = i % nx, y = (i % ny - x) / nx, z = (i - i % ny) / ny
      return rows.map(row => row[0] * x + row[1] * y + (n === 3 ? row[2] * z + row[3] : row[2]))
    })
    for (const f of files) for (let a = 0; a < n; a++) { if (f[a] < low[a]) low[a] = f[a]; if (f[a] > high[a]) high[a] = f[a] }
    const size = low.map((x, a) => high[a] - x + 1), bits = new Uint8Array(Math.ceil(size.reduce((a, b) => a * b) / 8))
    for (const f of files) {
      const q = f.reduce((sum, x, a) => sum * size[a] + x - low[a], 0)
      bits[q >> 3] |= 1 << (q & 7)
    }
    return { low, size, bits }
  }

  send(what, bits) {
    // Everything is numbered, and kept until the kernel says that it has seen it
    const message = { ...what, page: this.page, n: ++this.sent }
    this.pending.push({ ...message, bits, at: Date.now() })
    this.timer ??= setInterval(() => this.tick(), 250)
    try { this.model.send(message, undefined, bits ? [bits] : []) } catch { /* the kernel is gone: `tick` will say so */ }
  }

  tick() {
    if (!this.pending.length) { clearInterval(this.timer); this.timer = undefined }
    for (const view of this.views) view.tellState()
  }

  get late() { return this.pending.length > 0 && Date.now() - this.pending[0].at > LATE }

  take({ low, size, seen, state, words }, buffers) {
    // The kernel's truth, and over it again what it has not seen yet
    this.pending = this.pending.filter(m => m.n > (seen[this.page] ?? 0))
    this.state = state
    if (words) this.words = words
    if (size.length) {
      const fresh = numbers(buffers[0], this.layer.bits), ends = [low, low.map((x, a) => x + size[a] - 1)].map(f => apply(this.volume.from_file, f).map(Math.round))
      this.walk(low, size, this.steps, (i, q) => this.set(i, fresh[q]))
      for (const { bits, ...m } of this.pending) if (bits) this.walk(m.low, m.size, this.steps, (i, q) => { if (bits[q >> 3] >> (q & 7) & 1) this.set(i, m.label) })
      if (this.open) for (const i of this.open.cells) this.set(i, this.open.label)
      for (const end of ends) while (end.length < 3) end.push(0)
      this.changed(ends[0].map((x, a) => Math.min(x, ends[1][a])), ends[0].map((x, a) => Math.max(x, ends[1][a])))
    }
    this.answers++
    this.tick()
  }

  changed(low, high) { for (const view of this.views) { view.redraw(low, high); view.tellCount() } }

  // -------- a stroke: from the press to the release

  begin(label) { this.open = { label, cells: [] } }

  cover(a, b, radius, axis, fits) {
    // All voxels within `radius` mm of the way from voxel a to voxel b; across `axis` only the slice of a
    const { shape, spacing } = this.volume, d = b.map((x, k) => (x - a[k]) * spacing[k]), length = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    const low = a.map((x, k) => k === axis ? x : Math.max(0, Math.ceil(Math.min(x, b[k]) - radius / spacing[k] - 1e-6)))
    const high = a.map((x, k) => k === axis ? x : Math.min(shape[k] - 1, Math.floor(Math.max(x, b[k]) + radius / spacing[k] + 1e-6)))
    const most = (radius + 1e-6) ** 2, { label, cells } = this.open, take = i => {
      if (this.stamp[i] || fits && !fits(i)) return
      this.stamp[i] = 1
      cells.push(i)
      this.set(i, label)
    }
    for (const i of this.line(a, b)) take(i)
    for (let z = low[2]; z <= high[2]; z++) for (let y = low[1]; y <= high[1]; y++) for (let x = low[0]; x <= high[0]; x++) {
      const u = (x - a[0]) * spacing[0], v = (y - a[1]) * spacing[1], w = (z - a[2]) * spacing[2]
      const t = length ? clamp((u * d[0] + v * d[1] + w * d[2]) / length, 0, 1) : 0
      const p = u - t * d[0], q = v - t * d[1], r = w - t * d[2], i = x + this.stride[1] * y + this.stride[2] * z
      if (p * p + q * q + r * r <= most) take(i)
    }
    this.changed(low, high)
  }

  line(a, b) {
    // The voxels that the way itself runs through, so that a brush thinner than a voxel leaves no gaps; counted in the file
    const { to_file } = this.volume, n = to_file.length, [from, to] = [a, b].map(p => apply(to_file, p.slice(0, n)).map(Math.round))
    const count = Math.max(1, 2 * Math.max(...from.map((x, k) => Math.abs(to[k] - x))))
    return Array.from({ length: count + 1 }, (_, k) => from.reduce((i, x, axis) => i + this.steps[axis] * Math.floor(x + (to[axis] - x) * k / count + .5), this.base))
  }

  end(what) {
    const { cells, label } = this.open
    this.open = null
    for (const i of cells) this.stamp[i] = 0
    if (!cells.length) return
    const { low, size, bits } = this.pack(cells)
    this.words = ''
    this.send({ type: 'stroke', what, label, low, size }, bits)
  }

  download() {
    // The labels as this page has them, as a file that needs no kernel: Python sent all that comes before the voxels
    const { head, name, kind, shape } = this.layer.edited, voxels = new (kind === 'int32' ? Int32Array : Uint8Array)(this.codes.length)
    const { unseen } = this.layer
    this.walk(Array(this.steps.length).fill(0), [...shape].reverse(), [...this.steps].reverse(), (i, q) => { voxels[q] = this.codes[i] === unseen ? -1 : this.codes[i] })
    const start = Uint8Array.from(atob(head), c => c.charCodeAt(0)), link = element('a', { href: URL.createObjectURL(new Blob([start, voxels])), download: name })
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 1000)
  }
}

class EditView extends View {
  constructor(model, shared, root) {
    super(model, shared, root)
    this.besides = 380
    this.draft.views.add(this)
    this.stops.push(() => this.draft.views.delete(this))
    for (const name of ['tool', 'label', 'size', 'solid', 'values', 'tolerance', 'palette', 'points', 'boxes']) this.listen(name)
    this.shortcuts = event => this.anywhere(event)
    root.addEventListener('keydown', this.shortcuts)
    this.stops.push(() => root.removeEventListener('keydown', this.shortcuts))
    this.readPalette(); this.readTool(); this.readSize(); this.readSolid(); this.readValues(); this.readTolerance(); this.readPoints()
    this.tellState()
  }

  get(name) { return this.model.get(name) }
  get layer() { return this.volume.layers.find(l => l.edited) }
  get edited() { return this.layer.edited }
  get radius() { return this.get('size') / 2 }

  // -------- toolbar

  build() {
    if (!drafts.has(this.model)) drafts.set(this.model, new Draft(this.model, this.volume))
    this.draft = drafts.get(this.model)
    super.build()
    const button = (words, title, act, ...more) => {
      const node = element('button', { type: 'button', class: 'mnb-button', title }, words, ...more)
      node.onclick = act
      return node
    }
    const group = (name, ...nodes) => element('span', { class: 'mnb-tools', role: 'group', 'aria-label': name }, ...nodes)
    const words = text => element('span', { class: 'mnb-label' }, text), key = text => element('kbd', {}, text), { assists, unit } = this.edited
    this.tools = Object.fromEntries(TOOLS.map(([name, text, letter, , hint]) =>
      [name, button(text, hint, () => this.write('tool', name), key(letter.toUpperCase()))]))
    const kinds = [...new Set(TOOLS.map(t => t[3]))]
    this.undo = button('Undo', 'Ctrl+Z', () => this.ask('undo'))
    this.redo = button('Redo', 'Ctrl+Shift+Z', () => this.ask('redo'))
    this.saver = button('Save', '', () => this.ask('save'), key('S'))
    const load = (text, title) => button(text, title, () => this.draft.download())
    const bar = element('div', { class: 'mnb-toolbar', role: 'toolbar', 'aria-label': 'Tools' },
      ...kinds.map(kind => group(kind, words(kind), ...TOOLS.filter(t => t[3] === kind).map(t => this.tools[t[0]]))),
      group('History', this.undo, this.redo), group('File', this.saver, load('Download', 'The mask as a file, made by this page')))
    this.chips = element('span', { class: 'mnb-chips', role: 'group', 'aria-label': 'Labels' })
    this.named = element('input', { type: 'text', class: 'mnb-field', 'aria-label': 'Name of the label', size: 12 })
    this.named.oninput = () => this.paletted({ name: this.named.value.trim() || `class ${this.get('label')}` })
    this.inked = element('input', { type: 'color', class: 'mnb-ink', 'aria-label': 'Color of the label' })
    this.inked.onchange = () => this.paletted({ color: this.inked.value })
    this.count = element('output', { class: 'mnb-ends mnb-count', 'aria-label': 'Size of the label' })
    const labels = element('div', { class: 'mnb-row' }, words('Label'), this.chips, button('New label', 'One more label', () => this.newLabel()),
      element('span', { class: 'mnb-tools' }, this.named, this.inked, this.count))
    const field = (name, text, step) => {
      const node = element('input', { type: 'number', class: 'mnb-field mnb-number', 'aria-label': text, step: step ?? 'any' })
      node.onchange = () => { if (Number.isFinite(node.valueAsNumber)) name(node.valueAsNumber) }
      return node
    }
    this.sized = element('input', { type: 'range', min: 0, max: 60, step: 1, class: 'mnb-fader', 'aria-label': 'Size of the brush' })
    this.sized.oninput = () => this.setSize(this.sizeOf(this.sized.valueAsNumber))
    this.sizing = element('output', { class: 'mnb-ends mnb-size', 'aria-label': 'Diameter of the brush' })
    this.solidBox = element('input', { type: 'checkbox' })
    this.solidBox.onchange = () => this.write('solid', this.solidBox.checked)
    this.low = field(x => this.write('values', [Math.min(x, this.get('values')[1]), this.get('values')[1]]), 'Lowest value')
    this.high = field(x => this.write('values', [this.get('values')[0], Math.max(x, this.get('values')[0])]), 'Highest value')
    this.tolerant = field(x => this.write('tolerance', Math.abs(x)), 'Tolerance')
    this.optional = {
      size: group('Brush', words('Size'), this.sized, this.sizing, words('keys [ ]')),
      range: group('Values', words('Values from'), this.low, words('to'), this.high, button('From window', 'Take the window of the picture as the range', () => this.write('values', this.get('window')))),
      tolerance: group('Growing', words('Tolerance \u00b1'), this.tolerant),
      solid: element('label', { class: 'mnb-check' }, this.solidBox, '3-D', key('D')),
    }
    this.optional.holes = button('Fill holes', 'Give the chosen label all background that it encloses', () => this.holes())
    this.hint = element('span', { class: 'mnb-hint' })
    const options = element('div', { class: 'mnb-row' }, ...Object.values(this.optional), this.hint)
    this.walker = button('Random walker', 'A region from the + and \u2212 points (key R)', () => this.walk(), key('R'))
    this.helpers = assists.map(name => button(name, `Ask ${name} with the points and boxes`, () => this.ask('assist', { name })))
    this.prompts = element('div', { class: 'mnb-row mnb-prompts' }, this.prompted = words(''), this.walker, ...this.helpers,
      button('Clear prompts', 'Take all points and boxes away', () => this.clear()))
    this.stated = element('div', { class: 'mnb-state' }, this.saved = element('span', { role: 'status' }), this.problem = element('span', { class: 'mnb-problem', role: 'alert' }))
    this.alarm = element('div', { class: 'mnb-alarm', role: 'alert', hidden: true }, this.alarmed = element('span'), load('Download what I have', 'The mask with every stroke of this page, as a file'))
    this.tiles.before(element('div', { class: 'mnb-editor' }, bar, labels, options, this.prompts, this.alarm))
    this.tiles.after(this.stated)
    const keys = [['B E T P L G, M N X, C', 'choose a tool: the letter stands on its button'], ['[ ]', 'smaller or larger brush'], ['1 \u2026 9', 'choose a label'],
      ['D', 'paint in 3-D, or in the plane'], ['arrows', 'with any tool but the cross: move the cross in its plane'], ['Space', 'the tool works at the cross; held down with arrows, it paints a stroke'],
      [', .', 'one slice back or on'], ['Enter, Esc, Backspace', 'close a polygon, drop it, take back its last corner or the last prompt'], ['Ctrl+Z, Ctrl+Shift+Z', 'undo, redo'], ['S', 'save'], ['R', 'random walker']]
    this.help.querySelector('dl').prepend(...keys.flatMap(([k, what]) => [element('dt', {}, k), element('dd', {}, what)]))
    this.unit = unit
  }

  readTool() {
    const tool = this.get('tool')
    for (const [name, node] of Object.entries(this.tools)) node.setAttribute('aria-pressed', name === tool)
    const [, , , kind, hint] = TOOLS.find(t => t[0] === tool), { optional } = this
    if (tool !== 'polygon') this.polygon = null
    this.corner = null
    optional.size.hidden = !(STROKES.includes(tool) || MARKS.includes(tool))
    optional.range.hidden = tool !== 'threshold'
    optional.holes.hidden = tool !== 'fill'
    optional.tolerance.hidden = tool !== 'grow'
    optional.solid.hidden = this.planes.length === 1 || tool === 'cross' || tool === 'polygon' || kind === 'Prompts' && tool === 'box'
    this.hint.textContent = hint
    for (const plane of this.planes) plane.canvas.style.cursor = STROKES.includes(tool) ? 'none' : ''
    this.readPoints()
  }

  readSize() {
    const size = this.get('size')
    this.sized.value = Math.round(60 * Math.log(size / this.sizeOf(0)) / Math.log(this.sizeOf(60) / this.sizeOf(0)))
    this.sizing.textContent = `${number(Number(size.toPrecision(3)))} ${this.unit}`
    this.sized.setAttribute('aria-valuetext', this.sizing.textContent)
    this.draw()
  }

  sizeOf(step) { const [low, high] = this.edited.sizes; return low * (high / low) ** (step / 60) }
  setSize(size) { const [low, high] = this.edited.sizes; this.write('size', clamp(Number(size.toPrecision(3)), low, high)) }
  readSolid() { this.solidBox.checked = this.get('solid') }
  readValues() { const [low, high] = this.get('values'); this.low.value = number(low); this.high.value = number(high) }
  readTolerance() { this.tolerant.value = number(this.get('tolerance')) }
  readLabel() { this.readPalette() }
  readBoxes() { this.readPoints() }

  readPoints() {
    const points = this.get('points'), boxes = this.get('boxes'), tool = this.get('tool'), any = points.length + boxes.length
    const several = (n, word) => `${n} ${word}${n === 1 ? '' : word === 'box' ? 'es' : 's'}`
    this.prompts.hidden = !any && !MARKS.includes(tool) && tool !== 'box' && !this.helpers.length
    this.prompted.textContent = any ? `Prompts: ${[points.length && several(points.length, 'point'), boxes.length && several(boxes.length, 'box')].filter(Boolean).join(', ')}` : 'No prompts yet'
    const signs = new Set(points.map(p => p.at(-1)))
    this.walker.disabled = signs.size < 2
    for (const node of this.helpers) node.disabled = !any
    this.draw()
  }

  // -------- labels

  readPalette() {
    // The layer is colored anew; each label is a button with its color, number and name, and a box that shows or hides it
    const palette = this.get('palette'), label = this.get('label'), layer = this.layer
    Object.assign(layer, unpackLayer({ ...layer, classes: palette }, layer.codes, []))
    for (const c of palette) if (!c.shown) layer.rows[c.label] = 0
    this.chips.replaceChildren(...palette.map(c => {
      const node = element('button', { type: 'button', class: 'mnb-button', 'aria-pressed': `${c.label === label}`, title: c.label < 10 ? `Key ${c.label}` : false },
        element('span', { class: 'mnb-swatch', style: `--c:${c.color}` }), `${c.label} ${c.name}`)
      node.onclick = () => this.write('label', c.label)
      const eye = element('input', { type: 'checkbox', 'aria-label': `Show ${c.name}`, title: 'Visible', checked: c.shown })
      eye.onchange = () => this.paletted({ shown: eye.checked }, c.label)
      return element('span', { class: 'mnb-chip' }, node, eye)
    }))
    const own = palette.find(c => c.label === label) ?? palette[0]
    // A name that is being typed is left alone
    if (this.namedLabel !== label || document.activeElement !== this.named) this.named.value = own.name
    this.namedLabel = label
    this.inked.value = own.color
    this.readOpacity()
    this.tellCount()
  }

  paletted(change, label = this.get('label')) { this.write('palette', this.get('palette').map(c => c.label === label ? { ...c, ...change } : c)) }

  newLabel() {
    const palette = this.get('palette'), label = Math.max(...palette.map(c => c.label)) + 1, { colors } = this.edited
    if (label >= 2 ** this.layer.bits - 1) return
    this.model.set('palette', [...palette, { label, name: `class ${label}`, color: colors[(label - 1) % colors.length], shown: true }])
    this.write('label', label)
    this.named.focus()
    this.named.select()
  }

  tellCount() {
    if (this.counting) return
    this.counting = requestAnimationFrame(() => {
      this.counting = 0
      const n = this.draft.counts[this.get('label')], [amount, unit] = this.edited.measure
      this.count.textContent = `${n.toLocaleString('en')} voxel${n === 1 ? '' : 's'}${amount ? ` \u00b7 ${(n * amount).toLocaleString('en', { maximumFractionDigits: n * amount < 100 ? 2 : 0 })} ${unit}` : ''}`
    })
  }

  tellState() {
    const { draft } = this, { undo, redo, saved, since, path } = draft.state, waiting = draft.pending.filter(m => !m.bits && m.type !== 'here' && Date.now() - m.at > 300)
    this.undo.disabled = !undo; this.redo.disabled = !redo
    this.saver.disabled = !path
    this.saver.title = path ? `Write ${path}` : 'The editor was made without path=, so there is no file to write; Download gives one'
    const changes = since === 1 ? '1 change since' : since ? `${since} changes since` : 'no changes since'
    const where = path ? saved ? `Saved ${saved}, ${changes}${since ? ', kept in the journal' : ''}` : since ? `Not saved yet, ${since === 1 ? '1 change' : `${since} changes`} kept in the journal` : 'Nothing to save yet'
      : `${since === 1 ? '1 change' : `${since} changes`}; without path= nothing is written to disk, Download gives a file`
    this.told(this.saved, waiting.length ? `${waiting[0].name ?? NAMES[waiting[0].type] ?? waiting[0].type} \u2026 is at work` : where)
    this.told(this.problem, draft.words)
    if (this.alarm.hidden === draft.late) {
      this.alarm.hidden = !draft.late
      this.told(this.alarmed, draft.late ? 'Python does not answer. Your last strokes are only in this page. If a cell is still running, wait: they will arrive. If the kernel died:' : '')
    }
  }

  told(node, text) { if (node.textContent !== text) node.textContent = text }

  // -------- what the kernel does

  ask(type, more = {}) {
    this.draft.words = ''
    this.draft.send({ type, label: this.get('label'), solid: this.get('solid'), ...more })
    this.tellState()
  }

  file(p) { return apply(this.volume.to_file, p.slice(0, this.volume.to_file.length)).map(Math.round) }
  screen(index) { const p = apply(this.volume.from_file, index).map(Math.round); return p.length < 3 ? [...p, 0] : p }
  axisOf(plane) { return plane.file_axis ?? null }

  // -------- tools

  fits() {
    // Of the brush for values in a range: which voxels it may paint
    if (this.get('tool') !== 'threshold') return null
    const [low, high] = this.get('values'), { voxels, channels, size, slope, intercept, nothing } = this.volume, start = this.frame * size
    return i => {
      for (let k = channels * (start + i), c = 0; c < channels; c++) {
        const raw = voxels[k + c], value = slope * raw + intercept
        if (raw === nothing || value < low || value > high) return false
      }
      return true
    }
  }

  begin(plane, p) {
    const tool = this.get('tool')
    this.draft.words = ''
    if (!this.layer.shown) this.setHidden(this.layer, true)
    if (tool !== 'eraser' && !this.get('palette').find(c => c.label === this.get('label')).shown) this.paletted({ shown: true })
    this.masked = false
    this.stroke = { plane, last: p, axis: this.get('solid') ? null : plane.axis, radius: this.radius, fits: this.fits(), tool }
    this.draft.begin(tool === 'eraser' ? 0 : this.get('label'))
    this.move(p, p)
  }

  move(a, b) {
    const { axis, radius, fits } = this.stroke
    this.draft.cover(a, b, radius, axis, fits)
    this.stroke.last = b
  }

  finish() {
    if (!this.stroke) return
    const { tool, axis } = this.stroke
    this.stroke = null
    this.draft.end(axis === null ? `${tool} in 3-D` : tool)
  }

  act(plane, p) {
    // The tool works at display voxel p; true where a drag goes on from here
    const tool = this.get('tool'), at = this.file(p)
    this.active = plane
    if (STROKES.includes(tool)) this.begin(plane, p)
    else if (MARKS.includes(tool)) this.mark(p, true)
    else if (tool === 'polygon') {
      const old = this.polygon, on = old && old.plane === plane && old.z === p[plane.axis]
      if (!on) this.polygon = { plane, z: p[plane.axis], corners: [] }
      const last = this.polygon.corners.at(-1)
      if (!last || last.some((x, a) => x !== p[a])) this.polygon.corners.push(p)
    } else if (tool === 'fill') this.ask('fill', { at, axis: this.axisOf(plane) })
    else if (tool === 'grow') this.ask('grow', { at, axis: this.axisOf(plane), tolerance: this.get('tolerance') })
    this.draw()
  }

  holes() {
    const plane = this.active ?? this.planes.at(-1)
    this.ask('holes', { at: this.file(this.p), axis: this.axisOf(plane) })
  }

  mark(p, toggle) {
    // A point of the prompt; there is one at most in a voxel
    const sign = +(this.get('tool') === 'plus'), at = this.file(p), points = this.get('points'), is = q => at.every((x, a) => x === q[a])
    const old = points.find(is), rest = points.filter(q => !is(q))
    if (old && !toggle && old.at(-1) === sign) return
    this.write('points', old && toggle && old.at(-1) === sign ? rest : [...rest, [...at, sign]])
    this.marked = p
  }

  box(a, b) {
    const [one, two] = [this.file(a), this.file(b)]
    this.write('boxes', [...this.get('boxes'), [...one.map((x, k) => Math.min(x, two[k])), ...one.map((x, k) => Math.max(x, two[k]))]])
  }

  close_polygon() {
    if (!this.polygon || this.polygon.corners.length < 3) return
    const { plane, corners } = this.polygon
    this.polygon = null
    this.ask('polygon', { corners: corners.map(p => this.file(p)), axis: this.axisOf(plane) })
    this.draw()
  }

  walk() { this.ask('walker', { axis: this.axisOf(this.active ?? this.planes.at(-1)) }) }

  clear() { this.model.set('points', []); this.write('boxes', []) }

  owns(event) {
    const key = event.key.toLowerCase()
    return key === 'escape' && !!(this.polygon || this.corner) || (event.ctrlKey || event.metaKey) && (key === 'z' || key === 'y')
  }

  press(plane, event) {
    const tool = this.get('tool'), p = this.under(plane, event)
    if (tool === 'cross') return false
    if (tool === 'box') this.corner = { plane, from: p, to: p, dragged: true }
    else this.act(plane, p)
    return true
  }

  drag(plane, event) {
    const events = event.getCoalescedEvents?.() ?? [], places = (events.length ? events : [event]).map(e => this.under(plane, e))
    for (const p of places) {
      if (this.stroke && p.some((x, a) => x !== this.stroke.last[a])) this.move(this.stroke.last, p)
      if (MARKS.includes(this.get('tool')) && this.far(p)) this.mark(p, false)
    }
    if (this.corner) this.corner.to = places.at(-1)
  }

  far(p) { const { spacing } = this.volume; return Math.hypot(...p.map((x, a) => (x - this.marked[a]) * spacing[a])) >= Math.max(this.get('size'), ...this.volume.spacing) }

  release() {
    this.finish()
    if (this.corner?.dragged) {
      const { from, to } = this.corner
      this.corner = null
      if (from.some((x, a) => x !== to[a])) this.box(from, to)
    }
    this.draw()
  }

  twice() {
    if (this.get('tool') === 'polygon') this.close_polygon()
    return this.get('tool') !== 'cross'
  }

  point(plane) {
    this.over = plane
    this.draw()
  }

  // -------- keys: the cross is the cursor of the keyboard, Space its button

  key(plane, event) {
    const { key } = event, tool = this.get('tool'), { slice } = plane
    if (event.ctrlKey || event.metaKey || event.altKey) return false
    if (key === ',' || key === '.') { this.step(plane, key === '.' ? 1 : -1); return true }
    if (tool === 'cross') return false
    const by = !event.shiftKey && { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key]
    if (by) {
      const p = [...this.p]
      p[slice.across] = clamp(p[slice.across] + by[0], 0, slice.w - 1)
      p[slice.down] = clamp(p[slice.down] + by[1], 0, slice.h - 1)
      this.moveTo(p)
      if (this.stroke && p.some((x, a) => x !== this.stroke.last[a])) this.move(this.stroke.last, p)
      if (this.corner) this.corner.to = p
      return true
    }
    if (key === ' ') {
      if (event.repeat) return true
      this.hover = this.over = null
      if (tool === 'box' && this.corner) { this.box(this.corner.from, this.p); this.corner = null }
      else if (tool === 'box') this.corner = { plane, from: [...this.p], to: [...this.p] }
      else this.act(plane, [...this.p])
      this.draw()
      return true
    }
    if (key === 'Enter' && this.polygon) { this.close_polygon(); return true }
    if (key === 'Escape' && (this.polygon || this.corner)) { this.polygon = this.corner = null; this.draw(); return true }
    if (key === 'Backspace' && tool === 'polygon' && this.polygon) { this.polygon.corners.pop(); this.draw(); return true }
    if (key === 'Backspace' && MARKS.includes(tool)) { this.write('points', this.get('points').slice(0, -1)); return true }
    if (key === 'Backspace' && tool === 'box') { this.write('boxes', this.get('boxes').slice(0, -1)); return true }
    return false
  }

  lift(plane, event) { if (event.key === ' ') this.finish() }

  anywhere(event) {
    // Keys that work wherever the focus is within the editor, but not while words or numbers are typed
    if (event.target.matches('input[type=text], input[type=number], select') || event.altKey) return
    const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey, tool = TOOLS.find(t => t[2] === key)
    if (command && key === 'z') this.ask(event.shiftKey ? 'redo' : 'undo')
    else if (command && key === 'y') this.ask('redo')
    else if (command || event.defaultPrevented) return
    else if (tool) this.write('tool', tool[0])
    else if (key === '[' || key === ']') this.setSize(this.sizeOf(clamp(this.sized.valueAsNumber + (key === ']' ? 3 : -3), 0, 60)))
    else if (/^[1-9]$/.test(key)) { if (this.get('palette').some(c => c.label === +key)) this.write('label', +key) }
    else if (key === 'd' && this.planes.length > 1) this.write('solid', !this.get('solid'))
    else if (key === 's' && !this.saver.disabled) this.ask('save')
    else if (key === 'r' && !this.walker.disabled) this.walk()
    else return
    event.preventDefault()
    event.stopPropagation()
  }

  // -------- what lies over the pictures: the brush, a polygon or box that is being made, the prompts

  drawOver(plane, c, sx, sy, ox, oy) {
    if (!this.draft) return
    const { slice, axis, wide, high } = plane, tool = this.get('tool'), spot = p => [ox + (p[slice.across] + .5) * sx, oy + (p[slice.down] + .5) * sy]
    const both = (path, color, width = 1.5) => { for (const [style, w] of [['rgba(0,0,0,.75)', width + 2], [color, width]]) { c.strokeStyle = style; c.lineWidth = w; c.beginPath(); path(); c.stroke() } }
    c.save()
    c.beginPath(); c.rect(0, 0, wide, high); c.clip()
    const frame = (a, b, color) => {
      const [x, y, x2, y2] = [0, 1].flatMap(k => [ox + Math.min(a[slice.across], b[slice.across]) * sx, oy + Math.min(a[slice.down], b[slice.down]) * sy, ox + (Math.max(a[slice.across], b[slice.across]) + 1) * sx, oy + (Math.max(a[slice.down], b[slice.down]) + 1) * sy]).slice(0, 4)
      both(() => c.rect(x, y, x2 - x, y2 - y), color)
    }
    const n = this.volume.to_file.length
    for (const box of this.get('boxes')) {
      const [a, b] = [this.screen(box.slice(0, n)), this.screen(box.slice(n))]
      if (Math.min(a[axis], b[axis]) <= this.p[axis] && this.p[axis] <= Math.max(a[axis], b[axis])) frame(a, b, '#fff')
    }
    if (this.corner?.plane === plane) frame(this.corner.from, this.corner.to, '#f0e442')
    for (const point of this.get('points')) {
      const p = this.screen(point.slice(0, n)), [x, y] = spot(p), plus = point.at(-1)
      if (p[axis] !== this.p[axis]) continue
      c.beginPath(); c.arc(x, y, 6.5, 0, 7); c.fillStyle = plus ? '#005a8c' : '#b04a00'; c.fill()
      c.strokeStyle = '#fff'; c.lineWidth = 1.5; c.stroke()
      c.beginPath(); c.moveTo(x - 3.5, y); c.lineTo(x + 3.5, y)
      if (plus) { c.moveTo(x, y - 3.5); c.lineTo(x, y + 3.5) }
      c.stroke()
    }
    if (this.polygon?.plane === plane && this.polygon.z === this.p[axis]) {
      const { corners } = this.polygon, tip = this.over === plane && this.hover ? [this.hover] : !this.over && document.activeElement === plane.canvas ? [this.p] : []
      const all = [...corners, ...tip].map(spot)
      both(() => { all.forEach(([x, y], k) => k ? c.lineTo(x, y) : c.moveTo(x, y)); c.closePath() }, '#f0e442')
      for (const [x, y] of corners.map(spot)) { c.fillStyle = '#000'; c.fillRect(x - 4, y - 4, 8, 8); c.fillStyle = '#f0e442'; c.fillRect(x - 3, y - 3, 6, 6) }
    }
    const at = this.stroke && this.over !== plane && this.stroke.plane === plane ? this.stroke.last : this.over === plane ? this.hover : !this.over && document.activeElement === plane.canvas ? this.p : null
    if (at && STROKES.includes(tool)) {
      const [x, y] = spot(at), { spacing } = this.volume, own = this.get('palette').find(l => l.label === this.get('label'))
      const rx = Math.max(this.radius / spacing[slice.across], .5) * sx, ry = Math.max(this.radius / spacing[slice.down], .5) * sy
      both(() => c.ellipse(x, y, rx, ry, 0, 0, 7), tool === 'eraser' ? '#fff' : own.color)
      c.fillStyle = '#fff'; c.fillRect(x - 1, y - 1, 2, 2)
    }
    c.restore()
  }
}

const NAMES = { holes: 'Fill holes', walker: 'Random walker', grow: 'Grow', fill: 'Fill', polygon: 'Polygon', save: 'Save', undo: 'Undo', redo: 'Redo', assist: 'The assist' }

Shown = EditView
