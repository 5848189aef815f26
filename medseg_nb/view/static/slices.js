// The page's half of medseg_nb.view.viewer. Python sends the voxels once, in answer to {type: 'ready'}; from then on
// every slice is drawn here; a widget built on the viewer extends `View`. Display voxel p = [x, y, z]: x to the right, y down the screen, z through it (axial planes).
// The message, field by field: the notebook of medseg_nb.view.voxels.

const PATIENCE = 8000 // ms before the page says what may be wrong

// ---------------------------------------------------------------- data

const asked = new WeakMap() // model -> promise of its volume: several views share one copy

function fetchVolume(model) {
  if (!asked.has(model)) asked.set(model, new Promise((resolve, reject) => {
    const take = (message, buffers) => {
      if (message.type === 'refused') reject(new Error(message.reason))
      if (message.type !== 'voxels') return
      model.off('msg:custom', take)
      try { resolve(unpack(message, buffers)) } catch (error) { reject(error) }
    }
    model.on('msg:custom', take)
    model.send({ type: 'ready' })
  }))
  return asked.get(model)
}

// All viewers of this page, each widget with its own copy of this module: {model, volume}. Linked ones find each other here
const everyone = globalThis[Symbol.for('medseg_nb.viewers')] ??= new Set()

function numbers(view, bits) {
  const fits = view.byteOffset % (bits / 8) === 0
  const buffer = fits ? view.buffer : view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)
  return new (bits === 16 ? Uint16Array : Uint8Array)(buffer, fits ? view.byteOffset : 0, view.byteLength * 8 / bits)
}

const hexes = color => color.match(/\w\w/g).map(h => parseInt(h, 16))

// What is drawn over the image. `rows` turns a code into a row: 0 nothing, else the number of a class or of a color of a map;
// `inks` are the colors, `inkOf` says which of them a row has, `alphas` how much of it is seen
function unpackLayer(layer, codes, layers) {
  const of = layer.of?.map(title => layers.find(other => other.title === title))
  if (layer.kind === 'map') {
    const [low, high] = layer.range, rows = new Uint16Array(2 ** layer.bits), { slope, intercept } = layer
    for (let c = 1; c < rows.length; c++) rows[c] = 1 + Math.min(255, Math.max(0, Math.round(255 * (slope * c + intercept - low) / (high - low))))
    const inks = Array.from({ length: 256 }, (_, n) => layer.colors.slice(3 * n, 3 * n + 3))
    return { ...layer, codes, rows, inks, inkOf: Uint16Array.from({ length: 257 }, (_, n) => n - 1) }
  }
  const rows = new Uint16Array(2 ** layer.bits), byRow = [null], inkOf = [0], colors = [...new Set(layer.classes.map(c => c.color))]
  for (const c of layer.classes) {
    const rgb = hexes(c.color)
    rows[c.label] = byRow.length
    inkOf.push(colors.indexOf(c.color))
    byRow.push({ ...c, ink: (0xff000000 | rgb[2] << 16 | rgb[1] << 8 | rgb[0]) >>> 0 })
  }
  const inks = colors.map(hexes)
  return { ...layer, codes, rows, byRow, inks, inkOf, of, alphas: inks.map(() => 1) }
}

function unpack(volume, buffers) {
  let n = 0
  const layers = []
  for (const layer of volume.layers) layers.push(unpackLayer(layer, layer.of ? null : numbers(buffers[++n], layer.bits), layers))
  return { ...volume, voxels: numbers(buffers[0], volume.bits), layers }
}

// The kind of error at a voxel, from mask and prediction: 1 correct, 2 false alarm, 3 missed, 4 wrong class
function mistake(truth, guess, i) {
  const t = truth.codes[i], p = guess.codes[i]
  return t === truth.unseen || t === 0 && p === 0 ? 0 : t === p ? 1 : t === 0 ? 2 : p === 0 ? 3 : 4
}

// A (n, n+1) matrix times a point of n numbers
const apply = (matrix, p) => matrix.map(row => row.reduce((sum, m, i) => sum + m * (i < row.length - 1 ? p[i] : 1), 0))

// ---------------------------------------------------------------- one plane

// Axes of a plane across display axis a: [to the right, down]
const AXES = [[1, 2], [0, 2], [0, 1]]

class Slice {
  // One plane at the resolution of the voxels: its pixels, and the edges of its labels
  constructor(volume, axis) {
    const [across, down] = AXES[axis], strides = [1, volume.shape[0], volume.shape[0] * volume.shape[1]]
    Object.assign(this, { volume, axis, across, down, w: volume.shape[across], h: volume.shape[down], planes: [] })
    Object.assign(this, { dx: strides[across], dy: strides[down], dz: strides[axis] })
    this.canvas = Object.assign(document.createElement('canvas'), { width: this.w, height: this.h })
    this.context = this.canvas.getContext('2d')
    this.image = this.context.createImageData(this.w, this.h)
    this.pixels = new Uint32Array(this.image.data.buffer)
  }

  read(z, n) {
    // The rows of layer n with a margin of one pixel of nothing
    const { w, h, dx, dy } = this, start = z * this.dz, wide = w + 2, { codes, rows, of } = this.volume.layers[n]
    const plane = this.planes[n] ??= new Uint16Array(wide * (h + 2))
    for (let y = 0; y < h; y++) {
      let i = start + y * dy, q = (y + 1) * wide + 1
      if (of) for (let x = 0; x < w; x++, q++, i += dx) plane[q] = rows[mistake(of[0], of[1], i)]
      else for (let x = 0; x < w; x++, q++, i += dx) plane[q] = rows[codes[i]]
    }
  }

  paint(z, frame, gray, filled) {
    // gray: what each code becomes on the screen; filled: numbers of the layers to lay over it
    const { w, h, dx, dy, pixels } = this, { voxels, channels, size } = this.volume, start = frame * size + z * this.dz
    if (channels === 3) {
      for (let y = 0, q = 0; y < h; y++) for (let x = 0, i = 3 * (start + y * dy); x < w; x++, q++, i += 3 * dx)
        pixels[q] = gray[voxels[i]] & 0xff | gray[voxels[i + 1]] & 0xff00 | gray[voxels[i + 2]] & 0xff0000 | 0xff000000
    } else {
      for (let y = 0, q = 0; y < h; y++) for (let x = 0, i = start + y * dy; x < w; x++, q++, i += dx) pixels[q] = gray[voxels[i]]
    }
    filled.forEach((n, rank) => this.fill(this.planes[n], this.volume.layers[n], channels === 3 || rank > 0))
    this.context.putImageData(this.image, 0, 0)
  }

  fill(plane, { table, inkOf }, color) {
    // table: 256 entries for each ink, what each gray becomes under it
    const { w, h, pixels } = this
    let last = 0, tint = 0
    for (let y = 0, q = 0; y < h; y++) for (let x = 0, i = (y + 1) * (w + 2) + 1; x < w; x++, q++, i++) {
      const row = plane[i]
      if (row === 0) continue
      if (row !== last) { last = row; tint = 256 * inkOf[row] }
      const old = pixels[q]
      pixels[q] = color ? table[tint + (old & 255)] & 0xff | table[tint + (old >> 8 & 255)] & 0xff00 | table[tint + (old >> 16 & 255)] & 0xff0000 | 0xff000000 : table[tint + (old & 255)]
    }
  }

  edges(n) {
    // The edges of the classes, straight runs joined: six numbers each,
    // [row, side, upright?, line, from, to] in units of a pixel; side 1: the class lies below or right of the line
    const { w, h } = this, plane = this.planes[n], wide = w + 2, runs = []
    const trace = (upright, lines, length, next, along) => {
      for (let line = 0; line <= lines; line++) {
        let from = 0, a = 0, b = 0
        for (let s = 0, i = line * next + along; s <= length; s++, i += along) {
          const one = s < length ? plane[i] : 0, two = s < length ? plane[i + next] : 0
          if (one === a && two === b) continue
          if (a !== b) { if (a) runs.push(a, 0, upright, line, from, s); if (b) runs.push(b, 1, upright, line, from, s) }
          from = s; a = one; b = two
        }
      }
    }
    trace(0, h, w, wide, 1)
    trace(1, w, h, 1, wide)
    return runs
  }
}

class Ink {
  // Outlines at the resolution of the screen: sharp at any zoom, a few memory writes each
  resize(w, h) {
    Object.assign(this, { w, h })
    this.canvas = Object.assign(document.createElement('canvas'), { width: w, height: h })
    this.context = this.canvas.getContext('2d')
    this.image = this.context.createImageData(w, h)
    this.pixels = new Uint32Array(this.image.data.buffer)
  }

  draw(runs, colorOf, thick, rim = 0, dash = 0) {
    // Each line lies on its class's side of the edge, so that neighbors do not hide each other
    const { w, h, kx, ky, ox, oy, pixels } = this
    for (let r = 0; r < runs.length; r += 6) {
      const color = colorOf(runs[r]), before = (runs[r + 1] ? 0 : thick) + rim, after = (runs[r + 1] ? thick : 0) + rim
      const upright = runs[r + 2], line = runs[r + 3], from = runs[r + 4], to = runs[r + 5]
      const x = Math.round((upright ? line : from) * kx + ox), x2 = Math.round((upright ? line : to) * kx + ox)
      const y = Math.round((upright ? from : line) * ky + oy), y2 = Math.round((upright ? to : line) * ky + oy)
      const left = Math.max(0, x - (upright ? before : rim)), right = Math.min(w, x2 + (upright ? after : rim))
      const top = Math.max(0, y - (upright ? rim : before)), bottom = Math.min(h, y2 + (upright ? rim : after))
      if (right <= left) continue
      for (let row = top; row < bottom; row++) {
        if (!dash) pixels.fill(color, row * w + left, row * w + right)
        else for (let col = left; col < right; col++) if ((row + col) / dash & 1) pixels[row * w + col] = color
      }
    }
  }

  show() { this.context.putImageData(this.image, 0, 0); return this.canvas }
}

// ---------------------------------------------------------------- elements

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value === true ? '' : value)
  node.append(...children)
  return node
}

const number = x => Number.isInteger(x) ? `${x}` : Number(x.toPrecision(5)).toString()
const clamp = (x, low, high) => Math.min(high, Math.max(low, x))
const short = x => `${Number(x.toPrecision(3))}`.replace('-', '−')
const same = (a, b) => a.every((x, n) => Math.abs(x - b[n]) <= 1e-6 * Math.max(1, Math.abs(b[n])))
const signed = x => (x < 0 ? '\u2212' : '') + Math.abs(x).toFixed(1)

// ---------------------------------------------------------------- the viewer

class View {
  constructor(model, shared, root) {
    // The voxels are shared by all views of a model; what is shown, and how, is each view's own
    const volume = { ...shared, size: shared.shape[0] * shared.shape[1] * shared.shape[2], layers: shared.layers.map(layer => ({ ...layer })) }
    Object.assign(this, { model, volume, root, masked: false, hover: null, stops: [], zoom: 1, turn: -1, besides: 230, late: true, pending: requestAnimationFrame(() => this.next()) })
    this.planes = volume.planes.map(plane => ({ ...plane, slice: new Slice(volume, plane.axis), ink: new Ink(), stale: true }))
    this.focus = volume.shape.map(n => n / 2)
    this.gray = new Uint32Array(2 ** volume.bits)
    this.build()
    for (const name of ['index', 'window', 'opacity', 'opacities', 'hidden', 'fill', 'channel']) this.listen(name)
    this.muffle()
    this.sizer = new ResizeObserver(() => this.resize())
    this.sizer.observe(root)
    this.readIndex(); this.readWindow(); this.readOpacity(); this.readHidden(); this.readFill(); this.readChannel()
    this.resize()
  }

  listen(name) {
    const read = () => this[`read${name[0].toUpperCase()}${name.slice(1)}`]()
    this.model.on(`change:${name}`, read)
    this.stops.push(() => this.model.off(`change:${name}`, read))
  }

  muffle() {
    // A letter typed here must not insert or delete cells. JupyterLab passes over a focused element with this attribute,
    // and it looks before anything inside the page does; so it is set from the window, only for keys without Ctrl and the like
    const mute = event => {
      if (!this.root.contains(event.target)) return
      const free = event.ctrlKey || event.metaKey || event.altKey || event.key === 'Escape' || event.shiftKey && event.key === 'Enter'
      event.target.toggleAttribute('data-lm-suppress-shortcuts', !free || this.owns(event))
    }
    window.addEventListener('keydown', mute, true)
    this.stops.push(() => window.removeEventListener('keydown', mute, true))
  }

  // -------- for a widget built on this one: its tools answer here, and say whether they did

  owns(event) { return false } // a key with Ctrl and the like, or Escape
  press(plane, event) { return false }
  drag(plane, event) {}
  release(plane, event) {}
  twice(plane) { return false }
  key(plane, event) { return false }
  lift(plane, event) {}
  point(plane) {} // the pointer came, moved or left: null
  drawOver(plane, c, sx, sy, ox, oy) {}

  redraw(low, high) {
    // Layers changed between these display voxels, both included
    for (const plane of this.planes) plane.stale ||= low[plane.axis] <= this.p[plane.axis] && this.p[plane.axis] <= high[plane.axis]
    this.draw()
  }

  close() {
    this.closed = true
    this.sizer.disconnect()
    for (const stop of this.stops) stop()
  }

  // -------- state: Python's traits are the truth, the page reads and writes them

  readIndex() {
    const old = this.p
    this.p = apply(this.volume.from_file, this.model.get('index')).map(Math.round)
    while (this.p.length < 3) this.p.push(0)
    for (const plane of this.planes) plane.stale ||= !old || old[plane.axis] !== this.p[plane.axis]
    if (this.zoom > 1) this.follow()
    this.draw()
  }

  readWindow() {
    const [low, high] = this.model.get('window'), { slope, intercept, nothing } = this.volume, k = 255 * slope / (high - low)
    for (let raw = 0, v = (intercept - low) * 255 / (high - low); raw < this.gray.length; raw++, v += k) {
      const g = v <= 0 ? 0 : v >= 255 ? 255 : v + .5 | 0
      this.gray[raw] = 0xff000000 | g << 16 | g << 8 | g
    }
    if (nothing != null) { const [r, g, b] = hexes(this.volume.void); this.gray[nothing] = (0xff000000 | b << 16 | g << 8 | r) >>> 0 }
    this.ends.textContent = `${number(low)} \u2013 ${number(high)}`
    if (this.presets) {
      const found = this.volume.presets.findIndex(({ window }) => same(window, [low, high]))
      this.presets.value = found >= 0 ? found : same(this.range(), [low, high]) ? 'auto' : 'own'
    }
    this.drawAll()
  }

  readOpacity() {
    for (const layer of this.volume.layers) {
      const a = layer.opacity = this.model.get('opacities')[layer.title] ?? this.model.get('opacity')
      layer.table = new Uint32Array(256 * layer.inks.length)
      layer.inks.forEach((rgb, ink) => {
        const b = a * layer.alphas[ink]
        for (let g = 0; g < 256; g++) {
          const [red, green, blue] = rgb.map(c => Math.round(g * (1 - b) + c * b))
          layer.table[256 * ink + g] = 0xff000000 | blue << 16 | green << 8 | red
        }
      })
      layer.fader.value = a
    }
    this.drawAll()
  }

  readOpacities() { this.readOpacity() }

  readHidden() {
    const hidden = this.model.get('hidden')
    for (const layer of this.volume.layers) { layer.shown = !hidden.includes(layer.title); layer.box.checked = layer.shown }
    this.legend.replaceChildren(...this.entries())
    this.drawAll()
  }

  readFill() {
    if (this.filler) this.filler.checked = this.model.get('fill')
    this.drawAll()
  }

  readChannel() {
    this.frame = this.model.get('channel')
    if (this.frames) {
      this.frames.value = this.frame
      this.framed.textContent = `${this.frame} of 0 \u2013 ${this.volume.frames - 1}`
      this.frames.setAttribute('aria-valuetext', this.framed.textContent)
    }
    this.drawAll()
  }

  range() { return this.volume.ranges[this.frame ?? 0] }

  write(name, value) { this.model.set(name, value); this.model.save_changes() }

  goTo(index) {
    // The cross goes there, and with it that of every linked viewer
    this.write('index', index)
    const group = this.model.get('group'), p = apply(this.volume.from_file, index)
    if (!group) return
    for (const { model, volume } of everyone) {
      if (!volume || model === this.model || model.get('group') !== group) continue
      let there = index
      if (group.startsWith('world')) {
        const q = apply(volume.from_world, apply(this.volume.world, p)).map((x, a) => clamp(Math.round(x), 0, volume.shape[a] - 1))
        there = apply(volume.to_file, q).map(Math.round)
      }
      model.set('index', there)
      model.save_changes()
    }
  }

  moveTo(p) {
    p = p.map((x, a) => clamp(Math.round(x), 0, this.volume.shape[a] - 1))
    if (p.some((x, a) => x !== this.p[a])) this.goTo(apply(this.volume.to_file, p).map(Math.round))
  }

  slice(plane) { return this.model.get('index')[plane.file_axis] }

  setSlice(plane, value) {
    const index = [...this.model.get('index')], size = this.volume.shape[plane.axis]
    index[plane.file_axis] = clamp(value, 0, size - 1)
    if (index[plane.file_axis] !== this.slice(plane)) this.goTo(index)
  }

  step(plane, by) { if (plane.file_axis !== null) this.setSlice(plane, this.slice(plane) + by) }

  click(plane) { this.model.send({ type: 'click', index: this.model.get('index'), plane: plane.name }) }

  worst() {
    // The slice with the lowest Dice; asked again, the next
    const { dice } = this.volume, plane = this.planes.find(p => p.axis === 2)
    if (!dice) return
    this.turn = this.slice(plane) === dice.worst[this.turn] ? (this.turn + 1) % dice.worst.length : 0
    this.setSlice(plane, dice.worst[this.turn])
  }

  setHidden(layer, on) {
    const hidden = this.model.get('hidden').filter(title => title !== layer.title)
    this.write('hidden', on ? hidden : [...hidden, layer.title])
  }

  setOpacity(layer, value) {
    if (this.volume.layers.length === 1) this.write('opacity', value)
    else this.write('opacities', { ...this.model.get('opacities'), [layer.title]: value })
  }

  // -------- zoom: `focus` is the display point in the middle of the pictures

  origin(plane) {
    // Where the corner of the slice lies in its picture; the picture is always covered
    const [sx, sy] = this.pixel(plane), { slice, wide, high } = plane
    return [clamp(wide / 2 - this.focus[slice.across] * sx, wide - slice.w * sx, 0), clamp(high / 2 - this.focus[slice.down] * sy, high - slice.h * sy, 0)]
  }

  setZoom(zoom, plane, event) {
    zoom = clamp(zoom, 1, 16)
    if (zoom === this.zoom) return
    if (this.zoom === 1) this.focus = this.p.map(x => x + .5)
    if (event) {
      const box = plane.canvas.getBoundingClientRect(), [sx, sy] = this.pixel(plane), [ox, oy] = this.origin(plane), k = zoom / this.zoom
      const x = event.clientX - box.left - plane.left, y = event.clientY - box.top - plane.top
      this.focus[plane.slice.across] = (x - ox) / sx + (plane.wide / 2 - x) / (sx * k)
      this.focus[plane.slice.down] = (y - oy) / sy + (plane.high / 2 - y) / (sy * k)
    }
    this.zoom = zoom
    if (zoom === 1) this.focus = this.volume.shape.map(n => n / 2)
    this.zoomed.textContent = `${Math.round(100 * zoom)} %`
    this.drawAll()
  }

  pan(plane, dx, dy) {
    // By pixels of the page; the focus stays where the picture can follow
    if (this.zoom === 1) return
    const [sx, sy] = this.pixel(plane), [ox, oy] = this.origin(plane), { slice, wide, high } = plane
    this.focus[slice.across] = (wide / 2 - clamp(ox + dx, wide - slice.w * sx, 0)) / sx
    this.focus[slice.down] = (high / 2 - clamp(oy + dy, high - slice.h * sy, 0)) / sy
    this.drawAll()
  }

  follow() {
    // A cross that left a zoomed picture comes back to its middle
    for (const plane of this.planes) {
      if (!plane.width) continue
      const { slice, wide, high } = plane, [sx, sy] = this.pixel(plane), [ox, oy] = this.origin(plane)
      const off = [ox + (this.p[slice.across] + .5) * sx, oy + (this.p[slice.down] + .5) * sy]
      if (off[0] < 0 || off[0] > wide) { this.focus[slice.across] = this.p[slice.across] + .5; for (const one of this.planes) one.stale = true }
      if (off[1] < 0 || off[1] > high) { this.focus[slice.down] = this.p[slice.down] + .5; for (const one of this.planes) one.stale = true }
    }
  }

  // -------- page

  build() {
    const { volume, root } = this, solid = volume.planes.length > 1, any = volume.layers.length > 0
    const button = (text, title, act) => {
      const node = element('button', { type: 'button', class: 'mnb-button', title }, text)
      node.onclick = act
      return node
    }
    const group = (...nodes) => element('span', { class: 'mnb-group' }, ...nodes.filter(Boolean)), words = text => element('span', { class: 'mnb-label' }, text)
    this.legend = element('ul', { class: 'mnb-legend', 'aria-label': 'What the colors mean', tabindex: volume.layers.some(l => l.classes?.length > 24) ? 0 : false })
    this.ends = element('output', { class: 'mnb-ends', 'aria-label': 'Values drawn black and white' })
    this.zoomed = element('output', { class: 'mnb-ends', 'aria-label': 'Zoom' }, '100 %')
    const reset = button('Reset', 'Back to the first window (double click on a picture)', () => this.write('window', this.range()))
    const bar = element('div', { class: 'mnb-bar' }, this.legend)
    if (any) bar.append(this.layerControls())
    if (volume.frames > 1) bar.append(this.frameControl())
    bar.append(group(words('Window'), this.presetControl(), this.ends, reset))
    bar.append(group(words('Zoom'), button('\u2212', 'Zoom out (key \u2212)', () => this.setZoom(this.zoom / 1.5)), this.zoomed,
      button('+', 'Zoom in (key +)', () => this.setZoom(this.zoom * 1.5))))
    bar.append(group(button('Save PNG', 'Save the pictures as a file', () => this.save()),
      document.fullscreenEnabled && button('Full screen', 'Full screen, and back (key F)', () => this.fullScreen())))
    this.tiles = element('div', { class: 'mnb-tiles' }, ...this.planes.map(plane => this.tile(plane)))
    this.status = element('div', { class: 'mnb-status' })
    const keys = [['click, drag', 'move the cross'], solid && ['\u2191 \u2193, wheel after a click', 'one slice on or back'], solid && ['Page up, Page down', 'ten slices'],
      ['right drag, Shift drag', 'window: to the right wider, upward brighter'], ['double click', 'first window'],
      ['+ \u2212, Ctrl and wheel', 'zoom'], ['middle drag, Ctrl drag, Shift and arrows', 'move the zoomed picture'], ['0', 'no zoom'],
      any && ['H', 'hide all layers, and show them again'], volume.dice && ['W', 'worst slice; again: the next'],
      ['Enter', 'what a click tells Python'], document.fullscreenEnabled && ['F', 'full screen, and back']].filter(Boolean)
    this.help = element('details', { class: 'mnb-help' }, element('summary', {}, 'Mouse and keys'),
      element('dl', {}, ...keys.flatMap(([key, what]) => [element('dt', {}, key), element('dd', {}, what)])))
    root.replaceChildren(bar, this.tiles, this.status, this.help)
  }

  entries() {
    // One entry for each class of the layers that are shown, a bar with numbers for each map
    const shown = this.volume.layers.filter(layer => layer.shown), seen = new Map()
    for (const layer of shown.filter(l => l.kind !== 'map' && !l.edited)) {
      for (const c of layer.classes) seen.set(`${c.name} ${c.color}`, c)
      if (!layer.classes.length) seen.set(layer.title, { name: `${layer.title}: empty` })
    }
    const boxes = [...seen.values()].map(c => element('li', {}, ...c.color ? [element('span', { class: 'mnb-swatch', style: `--c:${c.color}` })] : [], c.name))
    const bars = shown.filter(l => l.kind === 'map').map(layer => {
      const [low, high] = layer.range, stops = layer.inks.filter((_, n) => n % 15 === 0).map(rgb => `rgb(${rgb})`)
      if (layer.empty) return element('li', {}, `${layer.title}: no finite values`)
      return element('li', { class: 'mnb-scale', title: 'Near 0 the image shows through' },
        layer.title, element('span', { class: 'mnb-ends' }, short(low)), element('span', { class: 'mnb-ramp', style: `background:linear-gradient(to right,${stops})` }),
        element('span', { class: 'mnb-ends' }, short(high)))
    })
    if (this.volume.nothing != null) boxes.push(element('li', {}, element('span', { class: 'mnb-swatch', style: `--c:${this.volume.void};background:var(--c)` }), 'not a finite number'))
    return [...boxes, ...bars]
  }

  presetControl() {
    if (!this.volume.presets.length) return null
    const own = element('option', { value: 'own', disabled: true, hidden: true }, 'own')
    this.presets = element('select', { class: 'mnb-select', 'aria-label': 'Window for CT' }, element('option', { value: 'auto' }, 'auto'), own,
      ...this.volume.presets.map(({ name, window: [low, high] }, n) => element('option', { value: n }, `${name} (W ${high - low}, L ${(low + high) / 2})`)))
    this.presets.onchange = () => this.write('window', this.presets.value === 'auto' ? this.range() : this.volume.presets[this.presets.value].window)
    return this.presets
  }

  frameControl() {
    this.frames = element('input', { type: 'range', min: 0, max: this.volume.frames - 1, step: 1, class: 'mnb-fader', 'aria-label': 'Channel' })
    this.frames.oninput = () => this.write('channel', this.frames.valueAsNumber)
    this.framed = element('output', { class: 'mnb-ends' })
    return element('label', { class: 'mnb-check mnb-frames' }, 'Channel', this.frames, this.framed)
  }

  layerControls() {
    const box = (act, ...words) => {
      const input = element('input', { type: 'checkbox', checked: true })
      input.onchange = () => act(input.checked)
      return [input, element('label', { class: 'mnb-check' }, input, ...words)]
    }
    const { layers } = this.volume, several = layers.length > 1, labels = layers.filter(l => l.kind !== 'map')
    const nodes = layers.map(layer => {
      const rank = labels.indexOf(layer), glyph = layer.kind === 'map' ? 'ramp' : layer.of ? 'mixed' : rank ? rank > 1 ? 'line mnb-dashed' : 'line' : 'swatch'
      const [input, check] = box(on => this.setHidden(layer, on), ...several ? [element('span', { class: `mnb-${glyph}` })] : [], layer.title,
        ...layer.named ? [element('span', { class: 'mnb-label' }, layer.kind)] : [])
      layer.box = input
      layer.fader = element('input', { type: 'range', min: 0, max: 1, step: .05, class: 'mnb-fader', 'aria-label': `Opacity of ${layer.title}`, title: 'Opacity' })
      layer.fader.oninput = () => this.setOpacity(layer, layer.fader.valueAsNumber)
      return element('span', { class: 'mnb-layer' }, check, layer.fader)
    })
    if (labels.length) {
      const [input, check] = box(on => this.write('fill', on), 'Fill')
      this.filler = input
      nodes.push(check)
    }
    return element('span', { class: 'mnb-group' }, ...nodes)
  }

  strip(plane) {
    // The Dice of each slice, as a row of bars under the axial slider
    const { values, worst } = this.volume.dice, n = values.length
    const bars = tall => values.map((d, k) => d === null ? '' : `M${k} 1v${-tall(d)}h1v${tall(d)}z`).join('')
    const holder = element('div')
    holder.innerHTML = `<svg viewBox="0 0 ${n} 1" preserveAspectRatio="none" class="mnb-dice" tabindex="0" role="slider" aria-label="Dice of each slice"
      aria-valuemin="0" aria-valuemax="${n - 1}"><path class="mnb-track" d="${bars(() => 1)}"/><path class="mnb-bars" d="${bars(d => d)}"/>
      ${worst.length ? `<rect class="mnb-worst" x="${worst[0]}" y="0" width="1" height="1"/>` : ''}<rect class="mnb-mark" y="0" width="1" height="1"/></svg>`
    const svg = holder.firstChild
    plane.mark = svg.querySelector('.mnb-mark')
    const to = event => { const box = svg.getBoundingClientRect(); this.setSlice(plane, Math.floor((event.clientX - box.left) / box.width * n)) }
    svg.onpointerdown = event => { svg.setPointerCapture(event.pointerId); svg.focus({ preventScroll: true }); to(event); event.preventDefault() }
    svg.onpointermove = event => { if (event.buttons & 1) to(event) }
    svg.onkeydown = event => {
      const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -n, End: n }[event.key]
      if (event.ctrlKey || event.metaKey || event.altKey) return
      if (by) this.step(plane, by)
      else if (event.key.toLowerCase() === 'w') this.worst()
      else return
      event.preventDefault()
      event.stopPropagation()
    }
    plane.dice = svg
    plane.said = element('span', { class: 'mnb-ends' })
    const go = element('button', { type: 'button', class: 'mnb-button', title: 'The slice with the lowest Dice; again: the next (key W)', disabled: !worst.length }, 'Worst slice')
    go.onclick = () => this.worst()
    return [svg, element('div', { class: 'mnb-caption-line' }, plane.said, go)]
  }

  tile(plane) {
    const size = this.volume.shape[plane.axis]
    plane.canvas = element('canvas', { class: 'mnb-canvas', tabindex: 0 })
    plane.context = plane.canvas.getContext('2d')
    plane.base = document.createElement('canvas')
    plane.caption = element('div', { class: 'mnb-caption' })
    const tile = plane.tile = element('div', { class: 'mnb-tile' }, plane.canvas)
    const name = plane.name || 'slice'
    if (plane.file_axis === null) {
      plane.canvas.setAttribute('role', 'img')
      plane.canvas.setAttribute('aria-label', 'Image')
    } else {
      plane.range = element('input', { type: 'range', min: 0, max: size - 1, step: 1, class: 'mnb-range', 'aria-label': `${name}: slice` })
      plane.range.oninput = () => this.setSlice(plane, plane.range.valueAsNumber)
      tile.append(element('div', { class: 'mnb-under' }, plane.caption, plane.range, ...plane.axis === 2 && this.volume.dice ? this.strip(plane) : []))
      for (const [key, value] of Object.entries({ role: 'slider', 'aria-label': `${name} plane`, 'aria-orientation': 'vertical',
        'aria-valuemin': 0, 'aria-valuemax': size - 1 })) plane.canvas.setAttribute(key, value)
    }
    this.connect(plane)
    return tile
  }

  // -------- mouse and keys

  connect(plane) {
    const { canvas } = plane
    let mode = null, last = null, first = null, rolled = 0
    canvas.oncontextmenu = event => { event.preventDefault(); event.stopPropagation() }
    canvas.onpointerdown = event => {
      canvas.focus({ preventScroll: true })
      canvas.setPointerCapture(event.pointerId)
      mode = event.button === 1 || event.button === 0 && (event.ctrlKey || event.metaKey) ? 'pan'
        : event.button === 2 || event.shiftKey ? 'window' : event.button === 0 ? 'cross' : null
      last = first = event
      if (mode === 'cross' && this.press(plane, event)) mode = 'tool'
      if (mode === 'cross') this.moveTo(this.under(plane, event))
      event.preventDefault()
    }
    canvas.onpointermove = event => {
      this.hover = this.under(plane, event)
      if (mode === 'tool') this.drag(plane, event)
      if (mode === 'cross') this.moveTo(this.hover)
      if (mode === 'window') this.dragWindow(canvas, event.clientX - last.clientX, event.clientY - last.clientY)
      if (mode === 'pan') this.pan(plane, event.clientX - last.clientX, event.clientY - last.clientY)
      last = event
      this.point(plane)
      this.tell()
    }
    canvas.onpointerup = event => {
      if (mode === 'cross' && Math.hypot(event.clientX - first.clientX, event.clientY - first.clientY) < 4) this.click(plane)
      if (mode === 'tool') this.release(plane, event)
      mode = null
    }
    canvas.onpointercancel = event => { if (mode === 'tool') this.release(plane, event); mode = null }
    canvas.onpointerleave = () => { this.hover = null; this.point(null); this.tell() }
    canvas.ondblclick = () => { if (!this.twice(plane)) this.write('window', this.range()) }
    canvas.onkeyup = event => this.lift(plane, event)
    canvas.addEventListener('wheel', event => {
      if (!this.root.contains(document.activeElement)) return
      const turned = event.deltaMode ? 40 * event.deltaY : event.deltaY
      if (event.ctrlKey || event.metaKey) { event.preventDefault(); this.setZoom(this.zoom * 2 ** (-turned / 240), plane, event); return }
      if (plane.file_axis === null) return
      event.preventDefault()
      rolled += turned
      if (Math.abs(rolled) >= 30) { this.step(plane, rolled < 0 ? 1 : -1); rolled = 0 }
    }, { passive: false })
    canvas.onkeydown = event => {
      const by = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key], key = event.key.toLowerCase()
      const pan = event.shiftKey && { ArrowUp: [0, 40], ArrowDown: [0, -40], ArrowLeft: [40, 0], ArrowRight: [-40, 0] }[event.key]
      if (this.key(plane, event)) { event.preventDefault(); event.stopPropagation(); return }
      if (event.ctrlKey || event.metaKey || event.altKey || event.key === 'Enter' && event.shiftKey) return
      if (pan) this.pan(plane, ...pan)
      else if (by) this.step(plane, by)
      else if (key === '+' || key === '=') this.setZoom(this.zoom * 1.5)
      else if (key === '-' || key === '_') this.setZoom(this.zoom / 1.5)
      else if (key === '0') this.setZoom(1)
      else if (key === 'h') { this.masked = !this.masked; this.drawAll() }
      else if (key === 'w') this.worst()
      else if (key === 'f') this.fullScreen()
      else if (key === 'enter') this.click(plane)
      else return
      event.preventDefault()
      event.stopPropagation()
    }
  }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen()
    else if (document.fullscreenEnabled) this.root.requestFullscreen()
  }

  save() {
    // The pictures side by side with their captions and the legend, at the resolution of the screen
    const ratio = this.planes[0].ratio, gap = 10, line = 20, canvas = document.createElement('canvas'), c = canvas.getContext('2d')
    const width = this.planes.reduce((sum, p) => sum + p.width + gap, gap), height = Math.max(...this.planes.map(p => p.height)) + 2 * gap + 2 * line
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) })
    c.scale(ratio, ratio)
    c.fillStyle = '#fff'; c.fillRect(0, 0, width, height)
    c.font = '13px system-ui, sans-serif'; c.textBaseline = 'middle'; c.fillStyle = '#000'
    let x = gap
    for (const plane of this.planes) {
      c.drawImage(plane.canvas, x, gap, plane.width, plane.height)
      c.textAlign = 'center'
      c.fillText(plane.caption.textContent, x + plane.width / 2, gap + plane.height + line / 2 + 2)
      x += plane.width + gap
    }
    c.textAlign = 'left'; x = gap
    for (const { name, color } of this.volume.layers.filter(l => l.shown && l.classes).flatMap(l => l.classes).slice(0, 12)) {
      c.fillStyle = color.slice(0, 7); c.fillRect(x, height - line - 4, 12, 12)
      c.fillStyle = '#000'; c.fillText(name, x + 17, height - line + 3)
      x += 32 + c.measureText(name).width
    }
    canvas.toBlob(blob => {
      const link = element('a', { href: URL.createObjectURL(blob), download: 'slices.png' })
      link.click()
      setTimeout(() => URL.revokeObjectURL(link.href), 1000)
    })
  }

  dragWindow(canvas, dx, dy) {
    // To the right widens the window, upward brightens; once across the picture is once the first range
    const [low, high] = this.model.get('window'), [first, final] = this.range(), all = final - first
    const width = Math.max(high - low + all * dx / canvas.clientWidth, all / 500)
    const level = (high + low) / 2 + all * dy / canvas.clientHeight
    this.write('window', [level - width / 2, level + width / 2])
  }

  // -------- geometry of the page

  resize() {
    if (this.closed || !this.root.isConnected) return
    const { spacing } = this.volume, gap = 10, style = getComputedStyle(this.tiles)
    const room = this.tiles.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)
    if (room <= 0) return
    const wide = this.planes.map(p => p.slice.w * spacing[p.slice.across]), high = this.planes.map(p => p.slice.h * spacing[p.slice.down])
    const tall = document.fullscreenElement === this.root ? Math.max(200, this.root.clientHeight - this.besides) : 460
    const tallest = Math.max(...high), inRow = (room - gap * (wide.length - 1)) / wide.reduce((a, b) => a + b)
    const stacked = room < 200 * wide.length
    const scale = stacked ? Math.min(room / Math.max(...wide), tall / tallest) : Math.min(inRow, tall / tallest)
    this.tiles.classList.toggle('mnb-stacked', stacked)
    this.planes.forEach((plane, n) => {
      // No picture is thinner than 4 pixels, no tile narrower than its slider needs
      const drawn = [Math.max(4, wide[n] * scale), Math.max(4, high[n] * scale)]
      const w = Math.max(stacked ? Math.max(...wide) * scale : drawn[0], Math.min(room, 90)), h = stacked ? drawn[1] : Math.max(drawn[1], tallest * scale)
      Object.assign(plane.canvas.style, { width: `${w}px`, height: `${h}px` })
      plane.tile.style.width = `${w}px`
      Object.assign(plane, { scale, width: w, height: h, wide: drawn[0], high: drawn[1], left: (w - drawn[0]) / 2, top: (h - drawn[1]) / 2 })
      const ratio = window.devicePixelRatio || 1
      for (const canvas of [plane.canvas, plane.base]) Object.assign(canvas, { width: Math.round(w * ratio), height: Math.round(h * ratio) })
      plane.ratio = ratio
      plane.ink.resize(Math.round(drawn[0] * ratio), Math.round(drawn[1] * ratio))
    })
    this.drawAll()
  }

  pixel({ slice, wide, high }) { return [wide / slice.w * this.zoom, high / slice.h * this.zoom] }

  under(plane, event) {
    // The display voxel under the pointer; outside the picture, the nearest one
    const box = plane.canvas.getBoundingClientRect(), [sx, sy] = this.pixel(plane), [ox, oy] = this.origin(plane), { slice } = plane, p = [...this.p]
    p[slice.across] = clamp(Math.floor((event.clientX - box.left - plane.left - ox) / sx), 0, slice.w - 1)
    p[slice.down] = clamp(Math.floor((event.clientY - box.top - plane.top - oy) / sy), 0, slice.h - 1)
    return p
  }

  // -------- drawing

  drawAll() { for (const plane of this.planes) plane.stale = true; this.draw() }

  draw() {
    // At once, so that the pixels are there when the key has been dealt with; what comes before the next frame is drawn together then
    if (this.closed) return
    if (this.pending) { this.late = true; return }
    this.pending = requestAnimationFrame(() => this.next())
    for (const plane of this.planes) if (plane.width) this.drawPlane(plane)
    this.tell()
  }

  next() {
    this.pending = 0
    if (this.late) { this.late = false; this.draw() }
  }

  drawPlane(plane) {
    const { context, base, ratio, wide, high } = plane, [sx, sy] = this.pixel(plane), [ox, oy] = this.origin(plane)
    if (plane.stale) this.drawBase(plane, base.getContext('2d'), sx, sy, ox, oy)
    plane.stale = false
    context.setTransform(1, 0, 0, 1, 0, 0)
    context.clearRect(0, 0, plane.canvas.width, plane.canvas.height) // The last row may be half transparent, and must not add up
    context.drawImage(base, 0, 0)
    context.setTransform(ratio, 0, 0, ratio, plane.left * ratio, plane.top * ratio)
    this.drawCross(plane, context, sx, sy, ox, oy)
    this.drawOver(plane, context, sx, sy, ox, oy)
    this.drawWords(plane, context, wide, high)
    this.drawUnder(plane)
  }

  drawBase(plane, c, sx, sy, ox, oy) {
    // All but the cross and the words; kept until the slice, the window or the layers change
    const { slice, ratio, wide, high } = plane, z = this.p[plane.axis], { layers } = this.volume
    const shown = this.masked ? [] : layers.map((_, n) => n).filter(n => layers[n].shown && layers[n].opacity > 0)
    const maps = shown.filter(n => layers[n].kind === 'map'), labels = shown.filter(n => layers[n].kind !== 'map')
    for (const n of shown) slice.read(z, n)
    const fill = this.model.get('fill') ? [...labels.filter(n => layers[n].of), ...labels.filter(n => !layers[n].of)].slice(0, 1) : []
    slice.paint(z, this.frame, this.gray, [...maps, ...fill])
    c.setTransform(ratio, 0, 0, ratio, 0, 0)
    c.fillStyle = '#000'
    c.fillRect(0, 0, plane.width, plane.height)
    c.save()
    c.translate(plane.left, plane.top)
    c.beginPath(); c.rect(0, 0, wide, high); c.clip()
    c.imageSmoothingEnabled = Math.min(sx, sy) * ratio < 2
    c.drawImage(slice.canvas, ox, oy, slice.w * sx, slice.h * sy)
    if (labels.length) this.drawOutlines(plane, c, labels, fill, [sx, sy, ox, oy])
    c.restore()
  }

  drawOutlines({ slice, ink, ratio, wide, high }, c, shown, fill, place) {
    // A layer that is filled needs no outline beside another; that of the others has a black rim, from the third on it is dashed.
    // No line is thicker than a pixel of the image, so that small things are not covered
    const { layers } = this.volume, ranks = layers.map((_, n) => n).filter(n => layers[n].kind !== 'map')
    ;[ink.kx, ink.ky, ink.ox, ink.oy] = place.map(x => x * ratio)
    const thick = Math.max(1, Math.round(Math.min(1.5 * ratio, .8 * Math.min(ink.kx, ink.ky)))), both = shown.length > 1
    for (const n of both ? shown.filter(n => !fill.includes(n)) : shown) {
      const runs = slice.edges(n), { byRow } = layers[n], dash = ranks.indexOf(n) > 1 && !layers[n].of ? 4 * ratio : 0
      ink.pixels.fill(0)
      if (both && n !== shown[0]) ink.draw(runs, () => 0xff000000, thick, Math.round(ratio))
      ink.draw(runs, row => byRow[row].ink, thick, 0, dash)
      c.globalAlpha = Math.min(1, 3 * layers[n].opacity)
      c.drawImage(ink.show(), 0, 0, wide, high)
    }
    c.globalAlpha = 1
  }

  drawCross(plane, c, sx, sy, ox, oy) {
    const { slice, wide, high } = plane, x = ox + (this.p[slice.across] + .5) * sx, y = oy + (this.p[slice.down] + .5) * sy, gap = 9
    c.save()
    c.beginPath(); c.rect(0, 0, wide, high); c.clip()
    c.lineCap = 'butt'
    for (const [style, width] of [['rgba(0,0,0,.35)', 3], ['rgba(255,255,255,.7)', 1]]) {
      c.strokeStyle = style; c.lineWidth = width
      c.beginPath()
      c.moveTo(0, y); c.lineTo(x - gap, y); c.moveTo(x + gap, y); c.lineTo(wide, y)
      c.moveTo(x, 0); c.lineTo(x, y - gap); c.moveTo(x, y + gap); c.lineTo(x, high)
      c.stroke()
    }
    c.restore()
  }

  drawWords(plane, c, w, h) {
    const scale = plane.scale * this.zoom
    const write = (text, x, y, align, baseline) => {
      c.textAlign = align; c.textBaseline = baseline
      c.strokeStyle = 'rgba(0,0,0,.85)'; c.lineWidth = 3; c.lineJoin = 'round'
      c.strokeText(text, x, y); c.fillStyle = '#fff'; c.fillText(text, x, y)
    }
    c.font = '600 13px system-ui, sans-serif'
    if (!this.volume.finite) write('no finite values', w / 2, h / 2, 'center', 'middle')
    const [left, right, top, bottom] = plane.edges
    if (left) {
      write(left, 6, h / 2, 'left', 'middle'); write(right, w - 6, h / 2, 'right', 'middle')
      write(top, w / 2, 6, 'center', 'top'); write(bottom, w / 2, h - 6, 'center', 'bottom')
    }
    if (!this.volume.stated || plane !== this.planes[0]) return
    const steps = [1, 2, 5].flatMap(n => [-3, -2, -1, 0, 1, 2, 3].map(e => n * 10 ** e)).filter(s => s * scale <= w / 3)
    const length = Math.max(...steps)
    c.font = '11px system-ui, sans-serif'
    c.fillStyle = 'rgba(0,0,0,.85)'; c.fillRect(9, h - 13, length * scale + 2, 4)
    c.fillStyle = '#fff'; c.fillRect(10, h - 12, length * scale, 2)
    write(`${number(length)} mm`, 10, h - 16, 'left', 'bottom')
  }

  drawUnder(plane) {
    if (plane.file_axis === null) return
    const k = this.slice(plane), size = this.volume.shape[plane.axis], axis = this.volume.axis_names[plane.file_axis]
    plane.caption.replaceChildren(element('b', {}, plane.name ? `${plane.name} ` : ''), `${axis} = ${k}`)
    plane.range.value = k
    if (plane.dice) {
      const { values, worst } = this.volume.dice, dice = values[k], has = dice === null ? 'nothing to compare' : `Dice ${dice.toFixed(2)}`
      plane.mark.setAttribute('x', k)
      plane.said.textContent = has
      plane.dice.setAttribute('aria-valuenow', k)
      plane.dice.setAttribute('aria-valuetext', `${axis} = ${k}, ${has}${k === worst[0] ? ', the worst slice' : ''}`)
    }
    plane.canvas.setAttribute('aria-valuenow', k)
    plane.canvas.setAttribute('aria-valuetext', `${plane.name || 'slice'}, ${axis} = ${k} of ${size}`)
  }

  // -------- the line of words under the pictures: the voxel under the pointer, else under the cross

  tell() {
    const { volume } = this, p = this.hover ?? this.p, [nx, ny] = volume.shape, n = volume.to_file.length
    const at = p[0] + nx * (p[1] + ny * p[2]), first = volume.channels * (this.frame * volume.size + at)
    const value = raw => raw === volume.nothing || !volume.finite ? 'not finite' : number(volume.slope * raw + volume.intercept)
    const values = Array.from({ length: volume.channels }, (_, c) => value(volume.voxels[first + c]))
    const item = (kind, name, text) => element('span', { class: `mnb-item mnb-${kind}` }, element('span', { class: 'mnb-label' }, name), text)
    const items = [item('voxel', volume.axis_names.join(', '), `(${apply(volume.to_file, p.slice(0, n)).map(Math.round).join(', ')})`)]
    if (volume.stated) items.push(item('world', n === 3 ? 'R, A, S' : 'row, column', `(${apply(volume.world, p.slice(0, n)).map(signed).join(', ')}) mm`))
    items.push(item('value', 'value', values.join(', ')))
    for (const layer of volume.layers) {
      if (!layer.shown && (layer.of || layer.kind === 'map')) continue
      const code = layer.of ? mistake(...layer.of, at) : layer.codes[at]
      const text = layer.kind === 'map' ? code ? number(layer.slope * code + layer.intercept) : 'not finite'
        : code === layer.unseen ? 'nobody looked' : layer.byRow[layer.rows[code]]?.name ?? '\u2013'
      items.push(item('class', layer.title.toLowerCase(), text))
    }
    this.status.replaceChildren(...items)
  }
}

let Shown = View // a widget built on the viewer puts its own class here
