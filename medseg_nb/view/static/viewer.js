// ---------------------------------------------------------------- anywidget

export default {
  initialize({ model }) {
    const me = { model }
    everyone.add(me)
    fetchVolume(model).then(volume => { me.volume = volume }, () => {})
    return () => everyone.delete(me)
  },

  render({ model, el }) {
    const root = element('div', { class: 'mnb-viewer', role: 'group', 'aria-label': 'Slice viewer' })
    const note = element('div', { class: 'mnb-note', role: 'status' }, 'Waiting for the voxels \u2026')
    root.append(note)
    el.append(root)
    let view = null, gone = false
    const impatient = setTimeout(() => { note.textContent = 'Still waiting for the voxels. If no kernel runs, run the cell that made this viewer.' }, PATIENCE)
    fetchVolume(model).then(volume => { clearTimeout(impatient); if (!gone) view = new Shown(model, volume, root) },
      error => { clearTimeout(impatient); note.textContent = `The voxels cannot be drawn: ${error.message}` })
    return () => { gone = true; clearTimeout(impatient); view?.close() }
  },
}
