// The page's half of medseg_nb.core.explore. One conversation for each model, however many views it has:
//   page -> kernel  {type: 'ready'}                       wanted: the controls, and what was drawn last
//                   {type: 'want', turn, values}          some controls were moved; answered by the same turn
//   kernel -> page  {type: 'drawn', turn, values, controls, size, error, words} and a PNG, or no PNG where it stays the same
// A wish that comes while another is drawn waits here, and newer ones take its place: the kernel never has more than one.

const PATIENCE = 600, LONG = 15000 // ms before the page says that it waits, and what may be wrong
const page = Math.random().toString(36).slice(2)
const talks = new WeakMap()
let turns = 0, ids = 0

class Talk {
  constructor(model) {
    Object.assign(this, { model, views: new Set(), wanted: {}, flying: {}, turn: null, last: null, png: null })
    model.on('msg:custom', (message, buffers) => { if (message.type === 'drawn') this.take(message, buffers) })
    model.send({ type: 'ready' })
  }

  want(name, value) {
    this.wanted[name] = value
    this.flush()
  }

  flush() {
    if (this.turn || !Object.keys(this.wanted).length) return
    Object.assign(this, { turn: `${page} ${++turns}`, flying: this.wanted, wanted: {} })
    this.model.send({ type: 'want', turn: this.turn, values: this.flying })
    for (const view of this.views) view.wait()
  }

  take(message, buffers) {
    if (message.turn === this.turn) Object.assign(this, { turn: null, flying: {} })
    this.last = message
    if (buffers.length) this.png = new Blob([buffers[0]], { type: 'image/png' })
    this.flush()
    for (const view of this.views) view.take(buffers.length > 0)
  }

  // What the controls show: what was drawn, unless the reader wants something else by now
  get values() { return { ...this.last.values, ...this.flying, ...this.wanted } }
}

function talk(model) {
  if (!talks.has(model)) talks.set(model, new Talk(model))
  return talks.get(model)
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value)
  made.append(...children)
  return made
}

// ---------------------------------------------------------------- controls: {show, body}, one for each kind

const minus = text => text.replace('-', '\u2212')

const kinds = {
  slider(control, id, want) {
    const input = element('input', { type: 'range', id, min: control.low, max: control.high, step: control.step })
    const output = element('output', { for: id, class: 'mnx-value' })
    input.oninput = () => { say(Number(input.value)); want(Number(input.value)) }
    const say = value => { output.textContent = minus(value.toFixed(control.digits)) }
    return { body: [input, output], show(value) { if (Number(input.value) !== value) input.value = value; say(value) } }
  },

  menu(control, id, want) {
    const input = element('select', { id, class: 'mnx-menu' }, ...control.choices.map((text, n) => element('option', { value: n }, text)))
    input.onchange = () => want(input.selectedIndex)
    return { body: [input], show(value) { input.selectedIndex = value } }
  },

  box(control, id, want) {
    const input = element('input', { type: 'checkbox', id })
    input.onchange = () => want(input.checked)
    return { body: [input], show(value) { input.checked = value } }
  },

  place(control, id) {
    const output = element('output', { id, class: 'mnx-place', 'aria-live': 'polite' })
    return { body: [output], show([row, column]) { output.textContent = `row ${row}, column ${column}` } }
  },
}

// ---------------------------------------------------------------- one view

class View {
  constructor(talk, root) {
    Object.assign(this, { talk, root, shown: 0, controls: null })
    this.img = element('img', { class: 'mnx-picture', alt: '' })
    this.mark = element('div', { class: 'mnx-mark', hidden: '' })
    this.frame = element('div', { class: 'mnx-frame' }, this.img, this.mark)
    this.status = element('div', { class: 'mnx-status', role: 'status' }, 'Waiting for the kernel \u2026')
    this.alert = element('div', { class: 'mnx-alert', role: 'alert', hidden: '' })
    this.words = element('div', { class: 'mnx-words' })
    this.grid = element('div', { class: 'mnx-grid' })
    this.left = element('div', { class: 'mnx-left' }, this.frame, this.alert, this.status)
    root.append(this.left, element('div', { class: 'mnx-right' }, this.grid, this.words))
    // A letter typed here must not insert or delete cells: JupyterLab passes over a focused element with this attribute,
    // and it looks before anything inside the page does
    this.mute = event => {
      if (!root.contains(event.target)) return
      const free = event.ctrlKey || event.metaKey || event.altKey || event.key === 'Escape' || event.shiftKey && event.key === 'Enter'
      event.target.toggleAttribute('data-lm-suppress-shortcuts', !free)
    }
    window.addEventListener('keydown', this.mute, true)
    this.slow = setTimeout(() => this.doubt(), LONG)
    talk.views.add(this)
    if (talk.last) this.take(true)
  }

  close() {
    this.closed = true
    clearTimeout(this.slow)
    clearTimeout(this.late)
    this.talk.views.delete(this)
    window.removeEventListener('keydown', this.mute, true)
    if (this.url) URL.revokeObjectURL(this.url)
  }

  build(controls) {
    this.controls = controls.map(control => {
      const id = `mnx-${page}-${++ids}`
      const made = kinds[control.kind](control, id, value => this.talk.want(control.name, value))
      const label = element(control.kind === 'place' ? 'span' : 'label', control.kind === 'place' ? { class: 'mnx-label' } : { for: id, class: 'mnx-label' }, control.label)
      this.grid.append(label, ...made.body)
      return { ...control, ...made }
    })
    this.place = this.controls.find(control => control.kind === 'place')
    if (this.place) this.point()
    if (controls.length) {
      const again = element('button', { type: 'button', class: 'mnx-button' }, 'Start values')
      again.onclick = () => { for (const control of controls) this.talk.want(control.name, control.start); this.settle() }
      this.grid.append(element('div', { class: 'mnx-foot' }, again))
    }
  }

  point() {
    // The picture takes clicks, drags and arrow keys
    const { frame, place } = this
    const help = `Click the picture to choose the place (${place.label}), or use the arrow keys on it; with Shift ten pixels.`
    for (const [name, value] of Object.entries({ tabindex: 0, role: 'application', 'aria-label': help })) frame.setAttribute(name, value)
    frame.classList.add('mnx-clicked')
    this.left.insertBefore(element('div', { class: 'mnx-help' }, help), this.status)
    const to = (row, column) => {
      const [rows, columns] = this.talk.last.size, clamp = (x, n) => Math.min(Math.max(Math.floor(x), 0), n - 1)
      this.talk.want(place.name, [clamp(row, rows), clamp(column, columns)])
      this.settle()
    }
    const hit = event => {
      const box = this.img.getBoundingClientRect(), [rows, columns] = this.talk.last.size
      to((event.clientY - box.top) / box.height * rows, (event.clientX - box.left) / box.width * columns)
    }
    frame.onpointerdown = event => {
      if (event.button) return
      frame.setPointerCapture(event.pointerId)
      frame.focus({ preventScroll: true })
      hit(event)
      event.preventDefault()
    }
    frame.onpointermove = event => { if (frame.hasPointerCapture(event.pointerId)) hit(event) }
    frame.onkeydown = event => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key]
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return
      const [row, column] = this.talk.values[place.name], far = event.shiftKey ? 10 : 1
      to(row + far * step[0], column + far * step[1])
      event.preventDefault()
      event.stopPropagation()
    }
  }

  wait() {
    clearTimeout(this.late)
    clearTimeout(this.slow)
    this.late = setTimeout(() => { this.status.textContent = 'Drawing \u2026'; this.frame.setAttribute('aria-busy', 'true') }, PATIENCE)
    this.slow = setTimeout(() => this.doubt(), LONG)
  }

  doubt() { this.status.textContent = 'Still waiting. The kernel may be busy; if none runs, run the cell that made this again.' }

  settle() {
    // The controls and the mark, where the reader wants them
    const { values, last } = this.talk
    for (const control of this.controls) control.show(values[control.name])
    if (!this.place) return
    const [row, column] = values[this.place.name], [rows, columns] = last.size
    this.mark.style.top = `${100 * (row + .5) / rows}%`
    this.mark.style.left = `${100 * (column + .5) / columns}%`
    this.mark.hidden = false
  }

  take(fresh) {
    const { last, png, turn } = this.talk
    if (!this.controls) this.build(last.controls)
    this.settle()
    if (!turn) {
      clearTimeout(this.late)
      clearTimeout(this.slow)
      this.status.textContent = ''
      this.frame.removeAttribute('aria-busy')
    }
    this.alert.hidden = !last.error
    this.alert.textContent = last.error ? `No new picture. ${last.error}` : ''
    this.words.innerHTML = last.words
    if (fresh && png) this.paint(png, last)
  }

  async paint(png, { size: [rows, columns], zoom, alt }) {
    // Shown when it is ready, so that no empty frame comes between two pictures
    const n = ++this.shown, url = URL.createObjectURL(png), next = new Image()
    next.src = url
    try { await next.decode() } catch { /* it is shown all the same, as well as it can be */ }
    if (this.closed || n < this.shown) return URL.revokeObjectURL(url)
    const old = this.url
    Object.assign(this, { url })
    this.img.src = url
    this.img.alt = alt
    this.img.style.width = `${columns * zoom}px`
    this.img.style.aspectRatio = `${columns} / ${rows}`
    this.img.style.imageRendering = zoom > 1 ? 'pixelated' : ''
    this.root.dataset.drawn = n
    if (old) URL.revokeObjectURL(old)
  }
}

export default {
  render({ model, el }) {
    const root = element('div', { class: 'mnx', role: 'group', 'aria-label': 'Explorer' })
    el.append(root)
    const view = new View(talk(model), root)
    return () => view.close()
  },
}
