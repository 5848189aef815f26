// The page's half of medseg_nb.view.viewer. Python sends the voxels once, in answer to {type: 'ready'}; from then on
// every slice is drawn here. Display voxel p = [x, y, z]: x to the right, y down the screen, z through it (axial planes).
// The message, field by field: nbs/02_view/02_viewer.ipynb.

const PATIENCE = 8000 // ms before the page says what may be wrong

// ---------------------------------------------------------------- data

const asked = new WeakMap() // model -> promise of its volume: several views share one copy

function fetchVolume(model) {
  if (!asked.has(model)) asked.set(model, new Promise((resolve, reject) => {
    const take = (message, buffers) => {
      if (message.type !== 'voxels') return
      model.off('msg:custom', take)
      try { resolve(unpack(message, buffers)) } catch (error) { reject(error) }
    }
    model.on('msg:custom', take)
    model.send({ type: 'ready' })
  }))
  return asked.get(model)
}

function numbers(view, bits) {
  const fits = view.byteOffset % (bits / 8) === 0
  const buffer = fits ? view.buffer : view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)
  return new (bits === 16 ? Uint16Array : Uint8Array)(buffer, fits ? view.byteOffset : 0, view.byteLength * 8 / bits)
}

function unpack(volume, buffers) {
  const layers = volume.layers.map((layer, n) => ({ ...layer, labels: numbers(buffers[n + 1], layer.bits) }))
  for (const layer of layers) {
    layer.byLabel = new Map(layer.classes.map(c => {
      const rgb = c.color.match(/\w\w/g).map(h => parseInt(h, 16))
      return [c.label, { ...c, rgb, ink: (0xff000000 | rgb[2] << 16 | rgb[1] << 8 | rgb[0]) >>> 0 }]
    }))
  }
  return { ...volume, voxels: numbers(buffers[0], volume.bits), layers }
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
    Object.assign(this, { volume, axis, across, down, w: volume.shape[across], h: volume.shape[down], labels: [] })
    Object.assign(this, { dx: strides[across], dy: strides[down], dz: strides[axis] })
    this.canvas = Object.assign(document.createElement('canvas'), { width: this.w, height: this.h })
    this.context = this.canvas.getContext('2d')
    this.image = this.context.createImageData(this.w, this.h)
    this.pixels = new Uint32Array(this.image.data.buffer)
  }

  read(z, n) {
    // The labels of layer n with a margin of one pixel of nothing
    const { w, h, dx, dy } = this, start = z * this.dz, wide = w + 2, { labels } = this.volume.layers[n]
    const plane = this.labels[n] ??= new Uint16Array(wide * (h + 2))
    for (let y = 0; y < h; y++) for (let x = 0, i = start + y * dy, q = (y + 1) * wide + 1; x < w; x++, q++, i += dx) plane[q] = labels[i]
  }

  paint(z, gray, filled) {
    // gray: what each code becomes on the screen; filled: number of the layer to lay over it, or -1
    const { w, h, dx, dy, pixels } = this, { voxels, channels } = this.volume, start = z * this.dz
    if (channels === 3) {
      for (let y = 0, q = 0; y < h; y++) for (let x = 0, i = 3 * (start + y * dy); x < w; x++, q++, i += 3 * dx)
        pixels[q] = gray[voxels[i]] & 0xff | gray[voxels[i + 1]] & 0xff00 | gray[voxels[i + 2]] & 0xff0000 | 0xff000000
    } else {
      for (let y = 0, q = 0; y < h; y++) for (let x = 0, i = start + y * dy; x < w; x++, q++, i += dx) pixels[q] = gray[voxels[i]]
    }
    if (filled >= 0) this.fill(this.labels[filled], this.volume.layers[filled].tints)
    this.context.putImageData(this.image, 0, 0)
  }

  fill(labels, tints) {
    // tints: for each label, what each gray becomes under its color
    const { w, h, pixels } = this, color = this.volume.channels === 3
    let last = 0, tint = null
    for (let y = 0, q = 0; y < h; y++) for (let x = 0, i = (y + 1) * (w + 2) + 1; x < w; x++, q++, i++) {
      const label = labels[i]
      if (label === 0) continue
      if (label !== last) { last = label; tint = tints.get(label) }
      const old = pixels[q]
      pixels[q] = color ? tint[old & 255] & 0xff | tint[old >> 8 & 255] & 0xff00 | tint[old >> 16 & 255] & 0xff0000 | 0xff000000 : tint[old & 255]
    }
  }

  edges(n) {
    // The edges of the labels, straight runs joined: six numbers each,
    // [label, side, upright?, line, from, to] in units of a pixel; side 1: the label lies below or right of the line
    const { w, h } = this, plane = this.labels[n], wide = w + 2, runs = []
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
  resize(w, h, kx, ky) {
    Object.assign(this, { w, h, kx, ky })
    this.canvas = Object.assign(document.createElement('canvas'), { width: w, height: h })
    this.context = this.canvas.getContext('2d')
    this.image = this.context.createImageData(w, h)
    this.pixels = new Uint32Array(this.image.data.buffer)
  }

  draw(runs, colorOf, thick, rim = 0) {
    // Each line lies on its label's side of the edge, so that neighbors do not hide each other
    const { w, h, kx, ky, pixels } = this
    for (let r = 0; r < runs.length; r += 6) {
      const color = colorOf(runs[r]), before = (runs[r + 1] ? 0 : thick) + rim, after = (runs[r + 1] ? thick : 0) + rim
      const upright = runs[r + 2], line = runs[r + 3], from = runs[r + 4], to = runs[r + 5]
      const x = Math.round((upright ? line : from) * kx), x2 = Math.round((upright ? line : to) * kx)
      const y = Math.round((upright ? from : line) * ky), y2 = Math.round((upright ? to : line) * ky)
      const left = Math.max(0, x - (upright ? before : rim)), right = Math.min(w, x2 + (upright ? after : rim))
      const top = Math.max(0, y - (upright ? rim : before)), bottom = Math.min(h, y2 + (upright ? rim : after))
      for (let row = top; row < bottom; row++) pixels.fill(color, row * w + left, row * w + right)
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
const signed = x => (x < 0 ? '\u2212' : '') + Math.abs(x).toFixed(1)

// ---------------------------------------------------------------- the viewer

class View {
  constructor(model, shared, root) {
    // The voxels are shared by all views of a model; what is shown, and how, is each view's own
    const volume = { ...shared, layers: shared.layers.map(layer => ({ ...layer, shown: true, tints: new Map() })) }
    Object.assign(this, { model, volume, root, filled: true, hidden: false, hover: null, stops: [] })
    this.planes = volume.planes.map(plane => ({ ...plane, slice: new Slice(volume, plane.axis), ink: new Ink(), stale: true }))
    this.gray = new Uint32Array(2 ** volume.bits)
    this.build()
    for (const name of ['index', 'window', 'opacity']) this.listen(name)
    this.muffle()
    this.sizer = new ResizeObserver(() => this.resize())
    this.sizer.observe(root)
    this.readIndex(); this.readWindow(); this.readOpacity()
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
      event.target.toggleAttribute('data-lm-suppress-shortcuts', !free)
    }
    window.addEventListener('keydown', mute, true)
    this.stops.push(() => window.removeEventListener('keydown', mute, true))
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
    this.draw()
  }

  readWindow() {
    const [low, high] = this.model.get('window'), { slope, intercept } = this.volume, k = 255 * slope / (high - low)
    for (let raw = 0, v = (intercept - low) * 255 / (high - low); raw < this.gray.length; raw++, v += k) {
      const g = v <= 0 ? 0 : v >= 255 ? 255 : v + .5 | 0
      this.gray[raw] = 0xff000000 | g << 16 | g << 8 | g
    }
    this.ends.textContent = `${number(low)} \u2013 ${number(high)}`
    this.drawAll()
  }

  readOpacity() {
    const a = this.opacity = this.model.get('opacity')
    for (const layer of this.volume.layers) for (const [label, { rgb }] of layer.byLabel) {
      const mix = Uint32Array.from({ length: 256 }, (_, g) => rgb.reduce((sum, c, n) => sum | Math.round(g * (1 - a) + c * a) << 8 * n, 0xff000000))
      layer.tints.set(label, mix)
    }
    if (this.fader) this.fader.value = this.opacity
    this.drawAll()
  }

  write(name, value) { this.model.set(name, value); this.model.save_changes() }

  moveTo(p) {
    p = p.map((x, a) => Math.min(this.volume.shape[a] - 1, Math.max(0, Math.round(x))))
    if (p.some((x, a) => x !== this.p[a])) this.write('index', apply(this.volume.to_file, p).map(Math.round))
  }

  slice(plane) { return this.model.get('index')[plane.file_axis] }

  setSlice(plane, value) {
    const index = [...this.model.get('index')], size = this.volume.shape[plane.axis]
    index[plane.file_axis] = Math.min(size - 1, Math.max(0, value))
    if (index[plane.file_axis] !== this.slice(plane)) this.write('index', index)
  }

  step(plane, by) { if (plane.file_axis !== null) this.setSlice(plane, this.slice(plane) + by) }

  // -------- page

  build() {
    const { volume, root } = this
    this.ends = element('output', { class: 'mnb-ends', 'aria-label': 'Values drawn black and white' })
    const reset = element('button', { type: 'button', class: 'mnb-button', title: 'Back to the first window (double click on a picture)' }, 'Reset')
    reset.onclick = () => this.write('window', volume.range)
    const bar = element('div', { class: 'mnb-bar' }, this.legend())
    if (volume.layers.length) bar.append(this.layerControls())
    bar.append(element('span', { class: 'mnb-group' }, element('span', { class: 'mnb-label' }, 'Window'), this.ends, reset))
    this.tiles = element('div', { class: 'mnb-tiles' }, ...this.planes.map(plane => this.tile(plane)))
    this.status = element('div', { class: 'mnb-status' })
    const solid = volume.planes.length > 1, labels = volume.layers.length > 0
    const help = ['Click: move the cross', solid && 'then \u2191 \u2193 or wheel: slice', labels && 'H: hide labels',
      'Shift drag or right drag: window', 'double click: reset it'].filter(Boolean).join(' \u00b7 ')
    this.help = element('div', { class: 'mnb-help' }, help)
    root.replaceChildren(bar, this.tiles, this.status, this.help)
  }

  legend() {
    const seen = new Map(this.volume.layers.flatMap(layer => layer.classes).map(c => [c.label, c]))
    return element('ul', { class: 'mnb-legend', 'aria-label': 'Classes' }, ...[...seen.values()].map(c =>
      element('li', {}, element('span', { class: 'mnb-swatch', style: `--c:${c.color}` }), c.name)))
  }

  layerControls() {
    const box = (act, ...words) => {
      const input = element('input', { type: 'checkbox', checked: true })
      input.onchange = () => { act(input.checked); this.drawAll() }
      return element('label', { class: 'mnb-check' }, input, ...words)
    }
    const both = this.volume.layers.length > 1, glyph = n => both ? [element('span', { class: n ? 'mnb-line' : 'mnb-swatch' })] : []
    this.fader = element('input', { type: 'range', min: 0, max: 1, step: .05, class: 'mnb-fader', 'aria-label': 'Opacity of the labels' })
    this.fader.oninput = () => this.write('opacity', this.fader.valueAsNumber)
    const toggles = this.volume.layers.map((layer, n) => box(on => { layer.shown = on }, ...glyph(n), layer.title))
    return element('span', { class: 'mnb-group' }, ...toggles, box(on => { this.filled = on }, 'Fill'),
      element('label', { class: 'mnb-check' }, 'Opacity', this.fader))
  }

  tile(plane) {
    const size = this.volume.shape[plane.axis]
    plane.canvas = element('canvas', { class: 'mnb-canvas', tabindex: 0 })
    plane.context = plane.canvas.getContext('2d')
    plane.base = document.createElement('canvas')
    plane.caption = element('div', { class: 'mnb-caption' })
    const tile = element('div', { class: 'mnb-tile' }, plane.canvas)
    const name = plane.name || 'slice'
    if (plane.file_axis === null) {
      plane.canvas.setAttribute('role', 'img')
      plane.canvas.setAttribute('aria-label', 'Image')
    } else {
      plane.range = element('input', { type: 'range', min: 0, max: size - 1, step: 1, class: 'mnb-range', 'aria-label': `${name}: slice` })
      plane.range.oninput = () => this.setSlice(plane, plane.range.valueAsNumber)
      tile.append(element('div', { class: 'mnb-under' }, plane.caption, plane.range))
      for (const [key, value] of Object.entries({ role: 'slider', 'aria-label': `${name} plane`, 'aria-orientation': 'vertical',
        'aria-valuemin': 0, 'aria-valuemax': size - 1 })) plane.canvas.setAttribute(key, value)
    }
    this.connect(plane)
    return tile
  }

  // -------- mouse and keys

  connect(plane) {
    const { canvas } = plane
    let mode = null, last = null, rolled = 0
    canvas.oncontextmenu = event => { event.preventDefault(); event.stopPropagation() }
    canvas.onpointerdown = event => {
      canvas.focus({ preventScroll: true })
      canvas.setPointerCapture(event.pointerId)
      mode = event.button === 2 || event.shiftKey ? 'window' : event.button === 0 ? 'cross' : null
      last = event
      if (mode === 'cross') this.moveTo(this.under(plane, event))
      event.preventDefault()
    }
    canvas.onpointermove = event => {
      this.hover = this.under(plane, event)
      if (mode === 'cross') this.moveTo(this.hover)
      if (mode === 'window') { this.dragWindow(canvas, event.clientX - last.clientX, event.clientY - last.clientY); last = event }
      this.tell()
    }
    canvas.onpointerup = canvas.onpointercancel = () => { mode = null }
    canvas.onpointerleave = () => { this.hover = null; this.tell() }
    canvas.ondblclick = () => this.write('window', this.volume.range)
    canvas.addEventListener('wheel', event => {
      if (!this.root.contains(document.activeElement) || plane.file_axis === null || event.ctrlKey) return
      event.preventDefault()
      rolled += event.deltaMode ? 40 * event.deltaY : event.deltaY
      if (Math.abs(rolled) >= 30) { this.step(plane, rolled < 0 ? 1 : -1); rolled = 0 }
    }, { passive: false })
    canvas.onkeydown = event => {
      const by = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key]
      if (event.ctrlKey || event.metaKey || event.altKey) return
      if (by) this.step(plane, by)
      else if (event.key.toLowerCase() === 'h') { this.hidden = !this.hidden; this.drawAll() }
      else return
      event.preventDefault()
      event.stopPropagation()
    }
  }

  dragWindow(canvas, dx, dy) {
    // To the right widens the window, upward brightens; once across the picture is once the first range
    const [low, high] = this.model.get('window'), [first, final] = this.volume.range, all = final - first
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
    const tallest = Math.max(...high), inRow = (room - gap * (wide.length - 1)) / wide.reduce((a, b) => a + b)
    const stacked = room < 200 * wide.length
    const scale = stacked ? Math.min(room / Math.max(...wide), 460 / tallest) : Math.min(inRow, 460 / tallest)
    this.tiles.classList.toggle('mnb-stacked', stacked)
    this.planes.forEach((plane, n) => {
      const w = stacked ? Math.max(...wide) * scale : wide[n] * scale, h = stacked ? high[n] * scale : tallest * scale
      Object.assign(plane.canvas.style, { width: `${w}px`, height: `${h}px` })
      plane.canvas.parentNode.style.width = `${w}px`
      Object.assign(plane, { scale, width: w, height: h, left: (w - wide[n] * scale) / 2, top: (h - high[n] * scale) / 2 })
      const ratio = window.devicePixelRatio || 1
      for (const canvas of [plane.canvas, plane.base]) Object.assign(canvas, { width: Math.round(w * ratio), height: Math.round(h * ratio) })
      plane.ratio = ratio
      plane.ink.resize(Math.round(wide[n] * scale * ratio), Math.round(high[n] * scale * ratio), spacing[plane.slice.across] * scale * ratio, spacing[plane.slice.down] * scale * ratio)
    })
    this.drawAll()
  }

  pixel({ slice, scale }) { return [this.volume.spacing[slice.across] * scale, this.volume.spacing[slice.down] * scale] }

  under(plane, event) {
    // The display voxel under the pointer; outside the picture, the nearest one
    const box = plane.canvas.getBoundingClientRect(), [sx, sy] = this.pixel(plane), { slice } = plane, p = [...this.p]
    p[slice.across] = Math.min(slice.w - 1, Math.max(0, Math.floor((event.clientX - box.left - plane.left) / sx)))
    p[slice.down] = Math.min(slice.h - 1, Math.max(0, Math.floor((event.clientY - box.top - plane.top) / sy)))
    return p
  }

  // -------- drawing

  drawAll() { for (const plane of this.planes) plane.stale = true; this.draw() }

  draw() {
    if (this.pending || this.closed) return
    this.pending = requestAnimationFrame(() => {
      this.pending = 0
      if (this.closed) return
      for (const plane of this.planes) if (plane.width) this.drawPlane(plane)
      this.tell()
    })
  }

  drawPlane(plane) {
    const { slice, context, base, ratio } = plane, [sx, sy] = this.pixel(plane), w = slice.w * sx, h = slice.h * sy
    if (plane.stale) this.drawBase(plane, base.getContext('2d'), sx, sy)
    plane.stale = false
    context.setTransform(1, 0, 0, 1, 0, 0)
    context.drawImage(base, 0, 0)
    context.setTransform(ratio, 0, 0, ratio, plane.left * ratio, plane.top * ratio)
    this.drawCross(plane, context, sx, sy)
    this.drawWords(plane, context, w, h)
    this.drawUnder(plane)
  }

  drawBase(plane, c, sx, sy) {
    // All but the cross and the words; kept until the slice, the window or the labels change
    const { slice, ratio } = plane, z = this.p[plane.axis]
    const shown = this.hidden || this.opacity === 0 ? [] : this.volume.layers.map((_, n) => n).filter(n => this.volume.layers[n].shown)
    for (const n of shown) slice.read(z, n)
    slice.paint(z, this.gray, this.filled && shown.length ? shown[0] : -1)
    c.setTransform(ratio, 0, 0, ratio, 0, 0)
    c.fillStyle = '#000'
    c.fillRect(0, 0, plane.width, plane.height)
    c.translate(plane.left, plane.top)
    c.imageSmoothingEnabled = Math.min(sx, sy) * ratio < 2
    c.drawImage(slice.canvas, 0, 0, slice.w * sx, slice.h * sy)
    if (shown.length) this.drawOutlines(plane, c, shown, slice.w * sx, slice.h * sy)
  }

  drawOutlines({ slice, ink, ratio }, c, shown, w, h) {
    // A mask that is filled needs no outline beside a prediction; the prediction's has a black rim.
    // No line is thicker than a pixel of the image, so that small things are not covered
    const thick = Math.max(1, Math.round(Math.min(1.5 * ratio, .8 * Math.min(ink.kx, ink.ky)))), both = shown.length > 1
    ink.pixels.fill(0)
    for (const n of both && this.filled ? shown.slice(1) : shown) {
      const runs = slice.edges(n), { byLabel } = this.volume.layers[n]
      if (both && n === shown[1]) ink.draw(runs, () => 0xff000000, thick, Math.round(ratio))
      ink.draw(runs, label => byLabel.get(label).ink, thick)
    }
    c.globalAlpha = Math.min(1, 3 * this.opacity)
    c.drawImage(ink.show(), 0, 0, w, h)
    c.globalAlpha = 1
  }

  drawCross(plane, c, sx, sy) {
    const { slice } = plane, x = (this.p[slice.across] + .5) * sx, y = (this.p[slice.down] + .5) * sy, gap = 9
    c.lineCap = 'butt'
    for (const [style, width] of [['rgba(0,0,0,.35)', 3], ['rgba(255,255,255,.7)', 1]]) {
      c.strokeStyle = style; c.lineWidth = width
      c.beginPath()
      c.moveTo(0, y); c.lineTo(x - gap, y); c.moveTo(x + gap, y); c.lineTo(slice.w * sx, y)
      c.moveTo(x, 0); c.lineTo(x, y - gap); c.moveTo(x, y + gap); c.lineTo(x, slice.h * sy)
      c.stroke()
    }
  }

  drawWords(plane, c, w, h) {
    const { scale } = plane
    const write = (text, x, y, align, baseline) => {
      c.textAlign = align; c.textBaseline = baseline
      c.strokeStyle = 'rgba(0,0,0,.85)'; c.lineWidth = 3; c.lineJoin = 'round'
      c.strokeText(text, x, y); c.fillStyle = '#fff'; c.fillText(text, x, y)
    }
    c.font = '600 13px system-ui, sans-serif'
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
    plane.canvas.setAttribute('aria-valuenow', k)
    plane.canvas.setAttribute('aria-valuetext', `${plane.name || 'slice'}, ${axis} = ${k} of ${size}`)
  }

  // -------- the line of words under the pictures: the voxel under the pointer, else under the cross

  tell() {
    const { volume } = this, p = this.hover ?? this.p, [nx, ny] = volume.shape, n = volume.to_file.length
    const at = p[0] + nx * (p[1] + ny * p[2]), value = raw => number(volume.slope * raw + volume.intercept)
    const values = Array.from({ length: volume.channels }, (_, c) => value(volume.voxels[volume.channels * at + c]))
    const item = (kind, name, text) => element('span', { class: `mnb-item mnb-${kind}` }, element('span', { class: 'mnb-label' }, name), text)
    const items = [item('voxel', volume.axis_names.join(', '), `(${apply(volume.to_file, p.slice(0, n)).map(Math.round).join(', ')})`)]
    if (volume.stated) items.push(item('world', n === 3 ? 'R, A, S' : 'row, column', `(${apply(volume.world, p.slice(0, n)).map(signed).join(', ')}) mm`))
    items.push(item('value', 'value', values.join(', ')))
    for (const layer of volume.layers) items.push(item('class', layer.title.toLowerCase(), layer.byLabel.get(layer.labels[at])?.name ?? '\u2013'))
    this.status.replaceChildren(...items)
  }
}

// ---------------------------------------------------------------- anywidget

export default {
  initialize({ model }) { fetchVolume(model) },

  render({ model, el }) {
    const root = element('div', { class: 'mnb-viewer', role: 'group', 'aria-label': 'Slice viewer' })
    const note = element('div', { class: 'mnb-note', role: 'status' }, 'Waiting for the voxels \u2026')
    root.append(note)
    el.append(root)
    let view = null, gone = false
    const impatient = setTimeout(() => { note.textContent = 'Still waiting for the voxels. If no kernel runs, run the cell that made this viewer.' }, PATIENCE)
    fetchVolume(model).then(volume => { clearTimeout(impatient); if (!gone) view = new View(model, volume, root) },
      error => { clearTimeout(impatient); note.textContent = `The voxels cannot be drawn: ${error.message}`; console.error(error) })
    return () => { gone = true; clearTimeout(impatient); view?.close() }
  },
}
