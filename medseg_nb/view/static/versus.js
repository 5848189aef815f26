// Several predictions over one image, side by side. All panes share one model and one copy of the voxels,
// so the cross, the window and the choice of layers are common by themselves; zoom and pointer are shared through `team`.

class Pane extends View {
  // One prediction in one plane; `this.root` is the whole widget, `this.box` its own part of it
  get team() { return this.volume.team }
  get zoom() { return this.team.zoom }
  set zoom(value) { this.team.zoom = value }
  get focus() { return this.team.focus }
  set focus(value) { this.team.focus = value }
  get hover() { return this.team.hover }
  set hover(value) { this.team.hover = value }
  get masked() { return this.team.masked }
  set masked(value) { this.team.masked = value }
  get lead() { return this.volume.pane === this.volume.panes[0] }

  build() {
    const { root, team, volume: { pane } } = this
    this.root = element('div')
    super.build()
    const [bar, tiles, status, help] = this.root.children, [plane] = this.planes
    this.root = root
    this.box = element('section', { class: 'mnb-pane', 'aria-label': pane.name },
      element('div', { class: 'mnb-name' }, element('b', {}, pane.name)), tiles, pane.votes ? this.legend : status)
    plane.canvas.setAttribute('aria-label', `${pane.name}, ${plane.name || 'image'}`)
    if (this.lead) {
      const keys = [['\u2191 \u2193, wheel after a click', 'one slice on or back, in all pictures'], ['Page up, Page down', 'ten slices'],
        ['D', 'the slice where they differ most; again: the next']]
      if (plane.file_axis !== null) help.querySelector('dl').prepend(...keys.flatMap(([key, what]) => [element('dt', {}, key), element('dd', {}, what)]))
      team.bar.replaceChildren(bar)
      if (team.chooser) bar.append(team.chooser)
      team.help.replaceChildren(help)
    }
    const under = tiles.querySelector('.mnb-under')
    if (under && this.lead) team.under.replaceChildren(under)
    else under?.remove()
    team.grid.append(this.box)
  }

  drawAll() {
    super.drawAll()
    for (const other of this.team.panes) if (other !== this) super.drawAll.call(other)
  }

  setZoom(...where) {
    super.setZoom(...where)
    this.team.panes[0].zoomed.textContent = this.zoomed.textContent
  }

  follow() {
    const was = `${this.focus}`
    super.follow()
    if (`${this.focus}` !== was) this.drawAll()
  }

  tell() {
    // Once for all panes: what is under the pointer, or else under the cross
    const { team } = this
    team.telling ||= requestAnimationFrame(() => {
      team.telling = 0
      for (const pane of team.panes) if (!pane.closed) pane.say()
      team.fill()
    })
  }

  say() {
    // What is common to all panes goes into the line under them
    super.tell()
    const common = [...this.status.children].filter(item => !item.classList.contains('mnb-class') || item.firstChild.textContent === 'truth')
    if (this.lead) this.team.status.replaceChildren(...common)
    else for (const item of common) item.remove()
  }

  save() {
    const own = this.planes
    this.planes = this.team.panes.flatMap(pane => pane.planes.map(plane => ({ ...plane, ratio: pane.planes[0].ratio,
      caption: { textContent: `${pane.volume.pane.name} ${plane.caption.textContent}` } })))
    super.save()
    this.planes = own
  }
}

class Team {
  // The widget: panes of one plane, what they share, and the table
  constructor(model, root) {
    Object.assign(this, { model, root, panes: [], zoom: 1, focus: null, hover: null, masked: false, telling: 0, turn: -1 })
    for (const part of ['bar', 'grid', 'under', 'status', 'help']) this[part] = element('div', { class: `mnb-team-${part}` })
    this.status.classList.add('mnb-status')
    this.note = element('div', { class: 'mnb-note', role: 'status' }, 'Waiting for the voxels \u2026')
    this.table = element('div', { class: 'mnb-table', tabindex: 0, role: 'region', 'aria-label': 'Scores' })
    root.replaceChildren(this.note, this.table, this.help)
    const read = () => { this.table.innerHTML = model.get('html'); this.fill() }, turn = () => this.arrange()
    model.on('change:html', read)
    model.on('change:plane', turn)
    this.stop = () => { model.off('change:html', read); model.off('change:plane', turn) }
    read()
  }

  open(volume) {
    this.volume = volume
    const words = text => element('span', { class: 'mnb-label' }, text)
    if (volume.planes.length > 1) {
      const names = volume.planes.map(plane => element('option', { value: plane.plane },
        plane.name || `across ${volume.axis_names[plane.file_axis]}`))
      this.select = element('select', { class: 'mnb-select', 'aria-label': 'Plane' }, ...names)
      this.select.onchange = () => { this.model.set('plane', this.select.value); this.model.save_changes() }
      this.chooser = element('span', { class: 'mnb-group' }, words('Plane'), this.select)
    }
    this.root.replaceChildren(this.bar, this.grid, this.under, this.status, this.table, this.help)
    this.root.addEventListener('keydown', event => {
      const busy = event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === 'SELECT'
      if (busy || event.key.toLowerCase() !== 'd') return
      event.preventDefault()
      event.stopPropagation()
      this.jump()
    })
    this.arrange()
  }

  arrange() {
    // The panes of the present plane
    const { volume, model } = this
    if (!volume) return
    for (const pane of this.panes) pane.close()
    this.grid.replaceChildren()
    Object.assign(this, { panes: [], zoom: 1, turn: -1 })
    this.across = volume.planes.length > 1 ? volume.planes.find(p => p.plane === model.get('plane')) : volume.planes[0]
    if (this.select) this.select.value = this.across.plane
    for (const pane of volume.panes) {
      const layers = pane.layers.map(([n, title]) => ({ ...volume.layers[n], title, named: false }))
      if (pane.errors) layers.push(unpackLayer(pane.errors, null, layers))
      this.panes.push(new Pane(model, { ...volume, planes: [this.across], layers, pane, team: this }, this.root))
    }
    if (volume.planes.length > 1) this.graph()
  }

  graph() {
    // How much they differ in each slice, and the way to where they differ most
    const { counts, order } = this.differ, n = counts.length, most = Math.max(...counts, 1)
    const bars = counts.map((count, k) => count ? `M${k} 1v${-count / most}h1v${count / most}z` : '').join('')
    const go = element('button', { type: 'button', class: 'mnb-button', disabled: !order.length,
      title: 'The slice with the most voxels on which they do not agree; again: the next (key D)' }, 'Where they differ most')
    const box = element('div')
    box.innerHTML = `<svg viewBox="0 0 ${n} 1" preserveAspectRatio="none" class="mnb-dice" role="img" aria-label="How much they differ in each slice">
      <path class="mnb-bars" d="${bars}"/><rect class="mnb-mark" y="0" width="1" height="1"/></svg>`
    const svg = box.firstChild
    svg.onpointerdown = event => { const { left, width } = svg.getBoundingClientRect(); this.goTo(Math.floor((event.clientX - left) / width * n)) }
    this.mark = svg.querySelector('.mnb-mark')
    this.count = element('span', { class: 'mnb-ends' })
    go.onclick = () => this.jump()
    this.under.firstChild.append(svg, element('div', { class: 'mnb-caption-line' }, this.count, go))
    this.fill()
  }

  get differ() { return this.volume.differ[this.across.file_axis] }

  goTo(k) { this.panes[0].setSlice(this.panes[0].planes[0], k) }

  jump() {
    const { order } = this.differ, k = this.model.get('index')[this.across.file_axis]
    if (!order.length) return
    this.turn = k === order[this.turn] ? (this.turn + 1) % order.length : 0
    this.goTo(order[this.turn])
  }

  fill() {
    // The scores of the slice under the cross
    const { volume, across } = this
    if (!across || across.file_axis === null) return
    const k = this.model.get('index')[across.file_axis], values = volume.slices[across.file_axis][k]
    this.table.querySelectorAll('.mnb-here').forEach((cell, n) => { cell.textContent = values[n] === null ? '\u2013' : values[n].toFixed(3) })
    for (const cell of this.table.querySelectorAll('.mnb-at')) cell.textContent = `${volume.axis_names[across.file_axis]} = ${k}`
    if (!this.mark) return
    this.mark.setAttribute('x', k)
    this.count.textContent = `${this.differ.counts[k].toLocaleString('en')} voxels in dispute in this slice`
  }

  close() { this.stop(); for (const pane of this.panes) pane.close() }
}

export default {
  initialize({ model }) {
    const me = { model }
    everyone.add(me)
    fetchVolume(model).then(volume => { me.volume = volume }, () => {})
    return () => everyone.delete(me)
  },

  render({ model, el }) {
    const root = element('div', { class: 'mnb-viewer mnb-versus', role: 'group', 'aria-label': 'Segmenters side by side' })
    el.append(root)
    const team = new Team(model, root)
    let gone = false
    const impatient = setTimeout(() => { team.note.textContent = 'Still waiting for the voxels. If no kernel runs, run the cell that made this comparison.' }, PATIENCE)
    fetchVolume(model).then(volume => { clearTimeout(impatient); if (!gone) team.open(volume) },
      error => { clearTimeout(impatient); team.note.textContent = `The voxels cannot be drawn: ${error.message}` })
    return () => { gone = true; clearTimeout(impatient); team.close() }
  },
}
