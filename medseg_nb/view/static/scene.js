// The page's half of medseg_nb.view.scene. Python sends the solid once, in answer to {type: 'ready'}: a row for each voxel
// (0 nothing, 1 the image, 2 ... the labels) and a gray. From then on every picture is cast here, a ray a pixel, by the graphics
// processor. The steps and their numbers are those of the notebook's `cast`; a test holds the two pictures against each other.

const VIEWS = [['Front', 0, 0], ['Back', 180, 0], ['Right', -90, 0], ['Left', 90, 0], ['Top', 0, 90], ['Bottom', 0, -90]]
const SIDES = ['LR', 'PA', 'IS'], SPANS = ['left to right', 'back to front', 'feet to head'], PLANES = ['sagittal', 'coronal', 'axial']
const PATIENCE = 8000 // ms before the page says what may be wrong

// ---------------------------------------------------------------- small things

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value === true ? '' : value)
  node.append(...children)
  return node
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x))
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
const times = (m, v) => m.map(row => dot(row, v))
const hexes = color => color.match(/\w\w/g).map(h => parseInt(h, 16))

// Rows: right, up, toward the viewer, in the patient (R, A, S)
function camera([around, up]) {
  const a = around * Math.PI / 180, e = up * Math.PI / 180
  const toward = [-Math.sin(a) * Math.cos(e), Math.cos(a) * Math.cos(e), Math.sin(e)], right = [-Math.cos(a), -Math.sin(a), 0]
  const above = [1, 2, 0].map((j, i) => { const k = [2, 0, 1][i]; return toward[j] * right[k] - toward[k] * right[j] })
  return [right, above, toward]
}

// ---------------------------------------------------------------- fields: what the surfaces are surfaces of

function votes(inside, [nx, ny, nz]) {
  // 8 of 64 votes from the voxel itself, 4, 2 or 1 from each neighbor
  for (const [stride, length] of [[nx * ny, nz], [nx, ny], [1, nx]]) {
    const x = inside, y = new Uint8Array(x.length), run = stride * length
    for (let o = 0; o < x.length; o += run) for (let k = 0; k < length; k++) {
      const below = k ? stride : 0, above = k < length - 1 ? stride : 0, first = o + k * stride
      for (let i = first; i < first + stride; i++) y[i] = x[i - below] + 2 * x[i] + x[i + above]
    }
    inside = y
  }
  return inside
}

function held(inside, size) {
  // No voxel is outvoted: see the notebook. Three times the votes, so that half of them is 96
  const v = votes(inside, size)
  for (let i = 0; i < v.length; i++) {
    const support = inside[i] ? v[i] : 64 - v[i], own = Math.max(support, 40, 64 - support)
    v[i] = 3 * (inside[i] ? own : 64 - own)
  }
  return v
}

function grouped(solid, opacity) {
  // All opaque rows share a field; up to three glass ones have their own, the last one with all others
  const seen = opacity.map((o, n) => o > 0 ? n + 1 : 0).filter(Boolean), isGlass = k => opacity[k - 1] < 1
  const glass = seen.filter(isGlass).sort((a, b) => solid.counts[b] - solid.counts[a] || a - b)
  return [seen.filter(k => !isGlass(k)), glass.slice(0, 1), glass.slice(1, 2), glass.slice(2)].filter(g => g.length)
}

function fieldsOf(solid, groups) {
  const { size, rows } = solid, n = rows.length, channels = groups.length > 1 ? 4 : 1, field = new Uint8Array(channels * n)
  const [nx, ny] = size, [bx, by, bz] = size.map(s => Math.ceil(s / 8)), blocks = new Uint8Array(bx * by * bz)
  groups.forEach((group, c) => {
    const known = new Uint8Array(solid.names.length + 1)
    if (group[0] === 1) known.fill(1, 1)
    for (const k of group) known[k] = 1
    const inside = new Uint8Array(n)
    for (let i = 0; i < n; i++) inside[i] = known[rows[i]]
    const v = held(inside, size)
    for (let i = 0; i < n; i++) field[channels * i + c] = v[i]
    for (let i = 0, z = 0; i < n; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++) {
      if (v[i] < 96) continue
      for (let q = Math.max(z - 1, 0) >> 3; q <= Math.min(z + 1 >> 3, bz - 1); q++)
        for (let p = Math.max(y - 1, 0) >> 3; p <= Math.min(y + 1 >> 3, by - 1); p++)
          for (let o = Math.max(x - 1, 0) >> 3; o <= Math.min(x + 1 >> 3, bx - 1); o++) blocks[o + bx * (p + by * q)] = 1
    }
  })
  return { field, channels, blocks, blockSize: [bx, by, bz] }
}

// ---------------------------------------------------------------- the shader

const CORNERS = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4. - 1., 0., 1.); }`

const CAST = `#version 300 es
precision highp float; precision highp int; precision highp sampler2D; precision highp sampler3D; precision highp usampler3D;
uniform usampler3D uRows, uBlocks;
uniform sampler3D uField, uGray;
uniform sampler2D uTable;             // two texels a row: color and opacity, and the number of its field, 0 for none
uniform vec3 uN, uLow, uHigh, uAt;
uniform ivec3 uCuts, uLast;
uniform mat3 uBack, uAxes;            // voxels a millimeter; columns right, up, toward
uniform vec2 uSize, uPan;
uniform float uMm, uStep, uVoxel;
uniform int uChannels;
uniform bool uStop, uSlices, uCorner;
out vec4 result;

vec4 field(vec3 p) { return texture(uField, (p + .5) / uN) * (255. / 192.); }
float gray(vec3 p) { return texture(uGray, (p + .5) / uN).r; }
ivec3 nearest(vec3 p) { return ivec3(clamp(round(p), vec3(0), uN - 1.)); }
vec4 table(uint k, uint line) { return texelFetch(uTable, ivec2(int(k & 255u), int((k >> 8) * 2u + line)), 0); }
int owner(uint k) { return int(table(k, 1u).r * 255. + .5) - 1; }
bool kept(vec3 p) {
  if (!uCorner || uCuts == ivec3(0)) return true;
  for (int a = 0; a < 3; a++) if (uCuts[a] == 1 && p[a] >= uLow[a] && p[a] <= uHigh[a]) return true;
  return false;
}

vec4 ink(vec3 p, int c, vec4 other) {
  vec4 total = vec4(0); float weight = 0.;
  for (int n = 0; n < 8; n++) {
    vec3 q = floor(p) + vec3(n & 1, n >> 1 & 1, n >> 2), near = max(1. - abs(p - q), 0.);
    uint k = texelFetch(uRows, ivec3(clamp(q, vec3(0), uN - 1.)), 0).r;
    if (owner(k) != c) continue;
    float w = near.x * near.y * near.z; w = w * w * w + 1e-6;
    total += w * table(k, 0u); weight += w;
  }
  return weight > 0. ? total / weight : other;
}

vec4 shade(vec3 p, int c, bool cut, vec4 other) {
  vec4 base = ink(p, c, other);
  vec3 toward = uAxes[2], rise, normal;
  for (int a = 0; a < 3; a++) { vec3 e = 1.5 * vec3(a == 0, a == 1, a == 2); rise[a] = field(p + e)[c] - field(p - e)[c]; }
  normal = -(rise * uBack);
  normal = length(normal) > 0. ? normalize(normal) : toward;
  if (cut) {
    vec3 gap = min(min(abs(p + .5), abs(p - uN + .5)), min(abs(p - uLow), abs(p - uHigh)));
    int a = gap.x <= gap.y && gap.x <= gap.z ? 0 : gap.y <= gap.z ? 1 : 2;
    normal = normalize(vec3(uBack[0][a], uBack[1][a], uBack[2][a]));
    normal *= sign(dot(normal, toward));
  }
  vec3 light = uAxes * normalize(vec3(-.45, .55, .7));
  float diffuse = max(dot(normal, light), 0.);
  vec3 color;
  if (cut) {
    uint k = texelFetch(uRows, nearest(p), 0).r;
    float g = gray(p);
    color = (k > 1u && owner(k) == c ? base.rgb * (.15 + .85 * g) : vec3(g)) * (.6 + .4 * diffuse);
  } else {
    vec3 out_ = uBack * normal * uVoxel;
    float folds = base.a < 1. ? 0. : (field(p + 1.5 * out_)[c] + field(p + 3. * out_)[c] + field(p + 6. * out_)[c]) / 3.;
    float open = 1. - .9 * folds, gloss = .18 * open * pow(max(dot(normal, normalize(light + toward)), 0.), 24.);
    color = base.rgb * (.3 * open + .85 * diffuse * (.35 + .65 * open)) + gloss;
  }
  float through = 1. - pow(max(1. - base.a, 0.), 1. / max(abs(dot(normal, toward)), .15));
  return vec4(clamp(color, 0., 1.), base.a < 1. ? through : 1.);
}

void main() {
  vec2 s = (gl_FragCoord.xy - .5 * uSize) * uMm - uPan;
  vec3 start = uBack * (s.x * uAxes[0] + s.y * uAxes[1]) + .5 * (uN - 1.), d = -(uBack * uAxes[2]);
  d = mix(d, vec3(1e-6), lessThan(abs(d), vec3(1e-6)));
  vec3 low = uCorner ? vec3(-.5) : uLow, high = uCorner ? uN - .5 : uHigh;
  vec3 a = (low - start) / d, b = (high - start) / d, small = min(a, b), large = max(a, b);
  float first = max(small.x, max(small.y, small.z)), end = min(large.x, min(large.y, large.z)), slice = 1e9, left = 1., g = 0.;
  if (uSlices) for (int n = 0; n < 3; n++) {
    float t = (uAt[n] - start[n]) / d[n];
    vec3 p = start + t * d;
    if (t < slice && all(greaterThanEqual(p, vec3(-.5))) && all(lessThanEqual(p, uN - .5)) && texelFetch(uGray, nearest(p), 0).r > 0.) { slice = t; g = gray(p); }
  }
  end = min(end, slice);
  vec3 rgb = vec3(0);
  float t = first + 1e-3, before = first - 1e-3;
  vec4 was = vec4(0), real = vec4(greaterThan(ivec4(uChannels), ivec4(0, 1, 2, 3)));
  if (uChannels > 0) for (int n = 0; n < 8192; n++) {
    if (t >= end || left < .02) break;
    vec3 p = start + t * d;
    ivec3 block = clamp(ivec3(floor((p + .5) / 8.)), ivec3(0), uLast);
    bool some = texelFetch(uBlocks, block, 0).r > 0u;
    vec4 now = some && kept(p) ? step(.5, field(p)) * real : vec4(0), fresh = now * (1. - was), where_ = vec4(1e9);
    bvec4 cut = bvec4(false);
    if (fresh != vec4(0)) {
      for (int c = 0; c < 4; c++) if (fresh[c] > 0.) {
        float out_ = before, in_ = t;
        for (int k = 0; k < 5; k++) {
          float m = .5 * (out_ + in_); vec3 q = start + m * d;
          if (field(q)[c] >= .5 && kept(q) && m >= first) in_ = m; else out_ = m;
        }
        where_[c] = in_; cut[c] = out_ < first || !kept(start + out_ * d);
      }
      for (int k = 0; k < 4; k++) {
        int c = 0;
        for (int o = 1; o < 4; o++) if (where_[o] < where_[c]) c = o;
        if (where_[c] > 1e8) break;
        vec4 seen = shade(start + where_[c] * d, c, cut[c], table(1u, 0u));
        rgb += left * seen.a * seen.rgb; left *= 1. - seen.a;
        where_[c] = 1e9;
      }
      if (uStop && now.x > 0.) break;
    }
    was = now;
    if (some) { before = t; t += uStep; }
    else {
      vec3 leave = ((vec3(block) + vec3(greaterThan(d, vec3(0)))) * 8. - .5 - start) / d;
      t = max(min(leave.x, min(leave.y, leave.z)), t) + 1e-3;
      before = t - 1e-3;
    }
  }
  if (slice < 1e8) { rgb += left * g; left = 0.; }
  result = vec4(rgb, 1. - left);
}`

// ---------------------------------------------------------------- one graphics context for all scenes of the page

// A page may have about sixteen contexts; the seventeenth takes the first one's away. So all scenes cast in the same one and
// copy what it made. `lives` counts how often it was lost and came back: whatever was stored there is then stored again
class Caster {
  constructor() {
    this.canvas = document.createElement('canvas')
    const gl = this.gl = this.canvas.getContext('webgl2', { alpha: true, premultipliedAlpha: true, antialias: false, depth: false })
    if (!gl) throw new Error('this browser offers no WebGL2 here (no graphics processor, or it is switched off)')
    this.lives = 1
    this.canvas.addEventListener('webglcontextlost', event => { event.preventDefault(); this.lost = true })
    this.canvas.addEventListener('webglcontextrestored', () => { this.lost = false; this.lives++; this.build() })
    this.build()
  }

  build() {
    const { gl } = this, program = this.program = gl.createProgram()
    for (const [kind, text] of [[gl.VERTEX_SHADER, CORNERS], [gl.FRAGMENT_SHADER, CAST]]) {
      const shader = gl.createShader(kind)
      gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(program, shader)
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(`its WebGL2 does not take the program: ${gl.getShaderInfoLog(shader)}`)
    }
    gl.linkProgram(program)
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(`its WebGL2 does not take the program: ${gl.getProgramInfoLog(program)}`)
    this.at = Object.fromEntries(Array.from({ length: gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS) ?? 0 }, (_, n) => {
      const { name } = gl.getActiveUniform(program, n)
      return [name, gl.getUniformLocation(program, name)]
    }))
    gl.bindVertexArray(gl.createVertexArray())
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1)
  }

  texture(old, kind, [nx, ny, nz], values) {
    // kind: how many bytes of which sort; only what is sampled between the voxels is smooth
    const { gl } = this, flat = nz === undefined, target = flat ? gl.TEXTURE_2D : gl.TEXTURE_3D
    const [inner, format, type] = { rows8: [gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE], rows16: [gl.R16UI, gl.RED_INTEGER, gl.UNSIGNED_SHORT],
      one: [gl.R8, gl.RED, gl.UNSIGNED_BYTE], four: [gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE] }[kind]
    const texture = old ?? gl.createTexture(), filter = flat || kind.startsWith('rows') ? gl.NEAREST : gl.LINEAR
    gl.bindTexture(target, texture)
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, name, filter)
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) gl.texParameteri(target, name, gl.CLAMP_TO_EDGE)
    if (flat) gl.texImage2D(target, 0, inner, nx, ny, 0, format, type, values)
    else gl.texImage3D(target, 0, inner, nx, ny, nz, 0, format, type, values)
    return texture
  }

  draw(width, height, textures, values) {
    const { gl, at, canvas } = this
    if (canvas.width < width || canvas.height < height) Object.assign(canvas, { width: Math.max(width, canvas.width), height: Math.max(height, canvas.height) })
    gl.useProgram(this.program)
    gl.viewport(0, 0, width, height)
    gl.clear(gl.COLOR_BUFFER_BIT)
    Object.entries(textures).forEach(([name, texture], n) => {
      gl.activeTexture(gl.TEXTURE0 + n)
      gl.bindTexture(name === 'uTable' ? gl.TEXTURE_2D : gl.TEXTURE_3D, texture)
      gl.uniform1i(at[name], n)
    })
    for (const [name, [how, value]] of Object.entries(values))
      if (how === 'Matrix3fv') gl.uniformMatrix3fv(at[name], false, value)
      else gl[`uniform${how}`](at[name], value)
    gl.drawArrays(gl.TRIANGLES, 0, 3)
    return gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0)
  }
}

const CASTER = Symbol.for('medseg_nb.caster')
const caster = () => globalThis[CASTER] ??= new Caster()

// ---------------------------------------------------------------- data

const asked = new WeakMap() // model -> promise of its solid: several views share one copy

function fetchSolid(model) {
  if (!asked.has(model)) asked.set(model, new Promise((resolve, reject) => {
    let why = ''
    try { caster() } catch (error) { why = error.message }
    const take = (message, buffers) => {
      if (message.type === 'still') resolve({ ...message, picture: buffers[0] })
      if (message.type !== 'solid') return
      model.off('msg:custom', take)
      try { resolve(unpack(message, buffers)) } catch (error) { reject(error) }
    }
    model.on('msg:custom', take)
    model.send({ type: 'ready', why })
  }))
  return asked.get(model)
}

function unpack(solid, [rows, gray]) {
  const bytes = view => new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength))
  rows = bytes(rows)
  if (solid.bits === 16) rows = new Uint16Array(rows.buffer)
  const counts = new Float64Array(solid.names.length + 1)
  for (let i = 0; i < rows.length; i++) counts[rows[i]]++
  return { ...solid, rows, gray: bytes(gray), counts }
}

// ---------------------------------------------------------------- the scene

class SceneView {
  constructor(model, solid, root) {
    Object.assign(this, { model, solid, root, stops: [], textures: {}, life: 0, cost: 400, canvas: element('canvas', { class: 'mnb-canvas', tabindex: 0, role: 'img' }) })
    this.context = this.canvas.getContext('2d')
    this.build()
    this.handle()
    for (const name of ['angles', 'zoom', 'pan', 'clip', 'corner', 'slices', 'index', 'hidden', 'opacities']) {
      const read = () => this.read()
      model.on(`change:${name}`, read)
      this.stops.push(() => model.off(`change:${name}`, read))
    }
    this.muffle()
    this.sizer = new ResizeObserver(() => this.resize())
    this.sizer.observe(root)
    this.read()
    this.resize()
  }

  muffle() {
    // A letter typed here must not insert or delete cells: see slices.js
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
    clearTimeout(this.resting)
    for (const stop of this.stops) stop()
    const { gl } = caster()
    for (const texture of Object.values(this.textures)) gl.deleteTexture(texture)
  }

  write(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value)
    this.unsaved = true
    this.read()
    this.saving ??= setTimeout(() => { this.saving = null; this.model.save_changes() }, 40)
  }

  read() {
    // Python's traits are the truth; whatever changed, the picture is of them
    const get = name => this.model.get(name), { names } = this.solid, hidden = get('hidden'), opacities = get('opacities')
    this.opacity = names.map(name => hidden.includes(name) ? 0 : opacities[name] ?? 1)
    this.state = Object.fromEntries(['angles', 'zoom', 'pan', 'clip', 'corner', 'slices'].map(name => [name, get(name)]))
    this.place = this.solid.from_file.map(row => dot(row, get('index')) + row[3])
    this.showState()
    this.draw()
  }

  // -------- controls

  build() {
    const { solid } = this, button = (text, title, act) => {
      const node = element('button', { type: 'button', class: 'mnb-button', title }, text)
      node.onclick = act
      return node
    }
    const group = (...nodes) => element('span', { class: 'mnb-group' }, ...nodes)
    this.views = VIEWS.map(([name, ...angles], n) => button(name, `From ${{ Top: 'above', Bottom: 'below', Front: 'the front', Back: 'the back' }[name] ?? `the patient's ${name.toLowerCase()}`} (key ${n + 1})`, () => this.write({ angles })))
    const bar = element('div', { class: 'mnb-bar' }, group(...this.views),
      group(button('Reset', 'View, cuts and labels as in the beginning (key 0)', () => this.reset()), button('Save PNG', 'The picture as it is', () => this.save()),
        ...document.fullscreenEnabled ? [button('Full screen', 'Full screen, and back (key F)', () => this.fullScreen())] : []))
    this.rows = solid.names.map((name, n) => this.row(name, n))
    const rows = element('fieldset', {}, element('legend', {}, 'Surfaces, and how opaque they are'), element('div', { class: 'mnb-rows', tabindex: this.rows.length > 8 ? 0 : false, role: 'group', 'aria-label': 'Surfaces' }, ...this.rows.map(r => r.node)))
    this.status = element('div', { class: 'mnb-status', role: 'status' })
    const keys = [['Drag, or arrow keys', 'turn'], ['Right button or Shift and drag, or Shift and arrow keys', 'move'], ['Wheel after a click, or + and \u2212', 'zoom'],
      ['1 \u2026 6', 'from the front, the back, the patient\'s right, left, from above, from below'], ['S', 'the three slices'], ['C', 'cut out only the corner'], ['0', 'as in the beginning'], ...document.fullscreenEnabled ? [['F', 'full screen, and back']] : []]
    this.help = element('details', { class: 'mnb-help' }, element('summary', {}, 'Mouse and keys'),
      element('dl', {}, ...keys.flatMap(([key, what]) => [element('dt', {}, key), element('dd', {}, what)])))
    this.help.ontoggle = () => this.resize()
    this.side = element('div', { class: 'mnb-side' }, rows, this.cuts(), this.crossing())
    this.root.replaceChildren(bar, element('div', { class: 'mnb-stage' }, element('div', { class: 'mnb-picture' }, this.canvas), this.side), this.status, this.help)
    this.initial = Object.fromEntries(['angles', 'zoom', 'pan', 'clip', 'corner', 'slices', 'hidden', 'opacities'].map(name => [name, solid.initial[name]]))
  }

  row(name, n) {
    const box = element('input', { type: 'checkbox' }), fader = element('input', { type: 'range', min: 0, max: 1, step: .05, class: 'mnb-fader', 'aria-label': `Opacity of ${name}`, title: 'Opacity' })
    const shown = n ? name : `image \u2265 ${Number(this.solid.level.toPrecision(4))}`.replace('-', '\u2212')
    const node = element('div', { class: 'mnb-row' }, element('label', { class: 'mnb-check', title: shown }, box,
      element('span', { class: 'mnb-swatch', style: `--c:${this.solid.colors[n]}` }), element('span', { class: 'mnb-name' }, shown)), fader)
    box.onchange = () => this.write({ hidden: box.checked ? this.model.get('hidden').filter(x => x !== name) : [...this.model.get('hidden'), name] })
    fader.oninput = () => this.write({ opacities: { ...this.model.get('opacities'), [name]: +fader.value } })
    return { node, box, fader, name }
  }

  cuts() {
    const box = element('input', { type: 'checkbox' })
    box.onchange = () => this.write({ corner: box.checked })
    this.cornerBox = box
    this.clips = SIDES.map((pair, a) => ['from', 'to'].map((word, e) => {
      const slider = element('input', { type: 'range', min: 0, max: 1, step: .01, 'aria-label': `Keep ${SPANS[a]}, ${word}` })
      slider.oninput = () => {
        const clip = this.model.get('clip').map(c => [...c])
        clip[a][e] = e ? Math.max(+slider.value, clip[a][0] + .01) : Math.min(+slider.value, clip[a][1] - .01)
        clip[a] = clip[a].map(x => Math.round(100 * x) / 100)
        this.write({ clip })
      }
      return slider
    }))
    const letters = a => this.solid.stated ? SIDES[a] : [`${'ijk'[a]}\u2212`, `${'ijk'[a]}+`]
    const lines = this.clips.map((pair, a) => element('div', { class: 'mnb-axis' }, element('b', {}, letters(a)[0]), ...pair, element('b', {}, letters(a)[1])))
    return element('fieldset', {}, element('legend', {}, 'Cut: keep from \u2026 to'), ...lines,
      element('label', { class: 'mnb-check', title: 'Take away only what all cuts take away together (key C)' }, box, 'only the corner'))
  }

  crossing() {
    const box = this.slicesBox = element('input', { type: 'checkbox' })
    box.onchange = () => this.write({ slices: box.checked })
    this.crosses = PLANES.map((name, a) => {
      const axis = this.solid.file_axes[a], slider = element('input', { type: 'range', min: 0, max: this.solid.file_shape[axis] - 1, step: 1, 'aria-label': `${this.solid.stated ? name : 'slice'}, ${'ijk'[axis]}` })
      slider.oninput = () => this.write({ index: this.model.get('index').map((i, n) => n === axis ? +slider.value : i), slices: true })
      return [slider, axis, element('div', { class: 'mnb-cross' }, element('span', { class: 'mnb-label' }, this.solid.stated ? name : 'ijk'[axis]), slider)]
    })
    return element('fieldset', {}, element('legend', {}, 'Slices of the image'), element('label', { class: 'mnb-check', title: 'Key S' }, box, 'show in place'), ...this.crosses.map(c => c[2]))
  }

  showState() {
    const { state, model, solid } = this, index = model.get('index'), hidden = model.get('hidden'), opacities = model.get('opacities')
    for (const { box, fader, name } of this.rows) { box.checked = !hidden.includes(name); fader.value = opacities[name] ?? 1 }
    this.clips.forEach((pair, a) => pair.forEach((slider, e) => { slider.value = state.clip[a][e]; slider.setAttribute('aria-valuetext', `${Math.round(100 * state.clip[a][e])} %`) }))
    this.cornerBox.checked = state.corner
    this.slicesBox.checked = state.slices
    for (const [slider, axis] of this.crosses) slider.value = index[axis]
    const [around, up] = state.angles.map(x => Math.round(x)), at = VIEWS.find(([, a, e]) => (a - around) % 360 === 0 && a + 0 === a && e === up)
    const words = [at ? `seen from the ${at[0].toLowerCase()}` : `${around}\u00b0 around, ${up}\u00b0 up`, `${Math.round(100 * state.zoom)} %`, ...solid.notes].map(w => w.replace(/-(?=\d)/g, '\u2212'))
    this.status.replaceChildren(...words.map(word => element('span', { class: 'mnb-item' }, word)))
    this.canvas.setAttribute('aria-label', `3-D scene, ${words.join(', ')}. Shown: ${solid.names.filter((_, n) => this.opacity[n] > 0).slice(0, 12).join(', ') || 'nothing'}`)
  }

  reset() { this.write(this.initial) }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen()
    else if (document.fullscreenEnabled) this.root.requestFullscreen()
  }

  save() {
    this.render(this.full())
    this.canvas.toBlob(blob => {
      const link = element('a', { href: URL.createObjectURL(blob), download: 'scene.png' })
      link.click()
      setTimeout(() => URL.revokeObjectURL(link.href), 1000)
    })
  }

  // -------- pointer and keys

  turn(dx, dy) {
    const [around, up] = this.state.angles, wrap = a => ((a + 180) % 360 + 360) % 360 - 180
    this.write({ angles: [wrap(around - dx), clamp(up + dy, -90, 90)] })
  }

  move(dx, dy) { const [x, y] = this.state.pan, mm = this.mm(); this.write({ pan: [x + dx * mm, y - dy * mm] }) }

  zoom(by) { this.write({ zoom: clamp(this.state.zoom * by, .1, 40) }) }

  handle() {
    const { canvas } = this
    let last = null, moving = false
    canvas.oncontextmenu = event => event.preventDefault()
    canvas.onpointerdown = event => {
      canvas.focus()
      canvas.setPointerCapture(event.pointerId)
      last = event; moving = event.button === 2 || event.shiftKey
    }
    canvas.onpointermove = event => {
      if (!last) return
      const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY
      if (moving) this.move(dx, dy)
      else this.turn(dx * 180 / this.high, dy * 180 / this.high)
      last = event
    }
    canvas.onpointerup = canvas.onpointercancel = () => { last = null }
    canvas.addEventListener('wheel', event => {
      if (!this.root.contains(document.activeElement)) return
      event.preventDefault()
      this.zoom(2 ** (-(event.deltaMode ? 40 * event.deltaY : event.deltaY) / 480))
    }, { passive: false })
    canvas.onkeydown = event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return
      const arrow = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key], key = event.key.toLowerCase(), n = '123456'.indexOf(key)
      if (arrow && event.shiftKey) this.move(20 * arrow[0], 20 * arrow[1])
      else if (arrow) this.turn(5 * arrow[0], 5 * arrow[1])
      else if (n >= 0) this.write({ angles: VIEWS[n].slice(1) })
      else if (key === '+' || key === '=') this.zoom(1.25)
      else if (key === '-' || key === '_') this.zoom(.8)
      else if (key === '0') this.reset()
      else if (key === 's') this.write({ slices: !this.state.slices })
      else if (key === 'c') this.write({ corner: !this.state.corner })
      else if (key === 'f') this.fullScreen()
      else return
      event.preventDefault()
      event.stopPropagation()
    }
  }

  // -------- drawing: coarse while something moves, fine once it rests

  resize() {
    if (this.closed || !this.root.isConnected) return
    const full = document.fullscreenElement === this.root
    this.root.classList.toggle('mnb-stacked', this.root.clientWidth < 620)
    const wide = Math.floor(this.canvas.parentElement.clientWidth), high = Math.floor(full ? Math.max(240, this.root.clientHeight - 150) : clamp(wide * .82, 220, 480)), ratio = window.devicePixelRatio || 1
    if (!wide || wide === this.wide && high === this.high && ratio === this.ratio) return
    Object.assign(this, { wide, high, ratio })
    Object.assign(this.canvas, { width: Math.round(wide * ratio), height: Math.round(high * ratio) })
    this.canvas.style.height = `${high}px`
    this.draw()
  }

  mm() { return .9 * this.solid.diagonal / this.state.zoom / Math.min(this.wide, this.high) } // a CSS pixel

  full() { return this.wide * this.high * this.ratio ** 2 / 1e6 } // Mpixels

  draw() {
    // `cost` is what a million pixels took, ms. While something moves, a picture may take 40 ms; once it rests, a second, and if there is time
    // to spare, four rays a pixel. A slow machine gets coarse pictures, but none that cannot be read
    this.canvas.dataset.state = 'moving'
    clearTimeout(this.resting)
    this.resting = setTimeout(() => { this.fine = true; this.ask() }, 140)
    this.fine = false
    this.ask()
  }

  ask() {
    if (this.asked || this.closed || !this.wide) return
    this.asked = requestAnimationFrame(() => {
      this.asked = 0
      if (this.busy || this.closed) return
      const all = this.full(), { fine } = this
      this.render(fine ? Math.min(all * 4, Math.max(240 / this.cost, all / 2, Math.min(all, 1000 / this.cost))) : Math.min(all, Math.max(.02, 40 / this.cost)), fine)
    })
  }

  store() {
    // What the graphics processor must hold; the fields only when other rows became visible, or a row became glass
    const at = caster(), { solid } = this, groups = grouped(solid, this.opacity), key = JSON.stringify(groups)
    if (this.life !== at.lives) Object.assign(this, { life: at.lives, textures: {}, key: null })
    const t = this.textures
    t.uRows ??= at.texture(null, solid.bits === 16 ? 'rows16' : 'rows8', solid.size, solid.rows)
    t.uGray ??= at.texture(null, 'one', solid.size, solid.gray)
    if (key !== this.key && groups.length) {
      const { field, channels, blocks, blockSize } = fieldsOf(solid, groups)
      t.uField = at.texture(t.uField, channels > 1 ? 'four' : 'one', solid.size, field)
      t.uBlocks = at.texture(t.uBlocks, 'rows8', blockSize, blocks)
    } else if (!t.uField) {
      t.uField = at.texture(null, 'one', [1, 1, 1], new Uint8Array(1))
      t.uBlocks = at.texture(null, 'rows8', [1, 1, 1], new Uint8Array(1))
    }
    this.key = key
    const high = 2 * Math.ceil((solid.names.length + 1) / 256), table = new Uint8Array(4 * 256 * high)
    solid.names.forEach((_, n) => {
      const k = n + 1, o = 4 * (k % 256 + 512 * (k >> 8)), c = groups.findIndex(g => g.includes(k))
      table.set([...hexes(solid.colors[n]), Math.round(255 * this.opacity[n])], o)
      table[o + 4 * 256] = c + 1
    })
    t.uTable = at.texture(t.uTable, 'four', [256, high], table)
    return groups
  }

  render(mpixels, fine) {
    const at = caster()
    if (at.lost) { setTimeout(() => this.draw(), 500); return }
    const start = performance.now(), groups = this.store(), { solid, state, wide, high } = this, scale = Math.sqrt(mpixels * 1e6 / (wide * high))
    const w = Math.max(1, Math.round(wide * scale)), h = Math.max(1, Math.round(high * scale)), v = camera(state.angles)
    const size = solid.size, cuts = state.clip.map(([a, b]) => a > 0 || b < 1 ? 1 : 0)
    const stored = performance.now()
    const fence = at.draw(w, h, this.textures, {
      uN: ['3fv', size], uLow: ['3fv', size.map((n, a) => n * state.clip[a][0] - .5)], uHigh: ['3fv', size.map((n, a) => n * state.clip[a][1] - .5)],
      uAt: ['3fv', this.place], uCuts: ['3iv', cuts], uLast: ['3iv', size.map(n => Math.ceil(n / 8) - 1)],
      uBack: ['Matrix3fv', [0, 1, 2].flatMap(c => solid.back.map(row => row[c]))], uAxes: ['Matrix3fv', v.flat()],
      uSize: ['2fv', [w, h]], uPan: ['2fv', state.pan], uMm: ['1f', this.mm() * wide / w], uStep: ['1f', solid.step], uVoxel: ['1f', solid.voxel],
      uChannels: ['1i', groups.length], uStop: ['1i', groups.length && this.opacity[groups[0][0] - 1] >= 1 ? 1 : 0], uSlices: ['1i', +state.slices], uCorner: ['1i', +state.corner],
    })
    this.compose(at.canvas, w, h, v)
    this.busy = true
    const { gl } = at, wait = () => {
      if (this.closed) return
      const done = gl.clientWaitSync(fence, 0, 0)
      if (done === gl.TIMEOUT_EXPIRED) { setTimeout(wait, 2); return }
      gl.deleteSync(fence)
      this.busy = false
      const ms = performance.now() - stored
      if (w * h > 3e4 || ms < 40) this.cost = clamp(.5 * this.cost + .5 * ms / (w * h / 1e6), 1, 1e5) // of a small slow picture most was no casting
      Object.assign(this.canvas.dataset, { ms: ms.toFixed(1), pixels: w * h, stored: (stored - start).toFixed(1), state: fine ? 'still' : 'moving' })
      if (this.fine && !fine) this.ask()
    }
    wait()
  }

  frame(v) {
    // The edges of the box and the letters of the patient's sides: [a, b, in front?], [letter, at, in front?]
    const { solid, state, wide, high } = this, mm = this.mm(), flat = p => [wide / 2 + (dot(v[0], p) + state.pan[0]) / mm, high / 2 - (dot(v[1], p) + state.pan[1]) / mm]
    const corner = n => times(solid.forward, [0, 1, 2].map(a => solid.size[a] * ((n >> a & 1) - .5))), corners = Array.from({ length: 8 }, (_, n) => corner(n))
    const depths = corners.map(p => dot(v[2], p)), near = depths.indexOf(Math.max(...depths)), edges = [], letters = []
    for (let n = 0; n < 8; n++) for (let a = 0; a < 3; a++) if (!(n >> a & 1)) edges.push([flat(corners[n]), flat(corners[n | 1 << a]), n === near || (n | 1 << a) === near])
    if (solid.stated) for (let a = 0; a < 3; a++) for (const sign of [0, 1]) {
      if (Math.abs(v[2][a]) >= .9) continue
      const reach = .5 * solid.forward[a].reduce((sum, m, b) => sum + Math.abs(m) * solid.size[b], 0) + .05 * solid.diagonal
      const p = [0, 1, 2].map(b => b === a ? (2 * sign - 1) * reach : 0)
      letters.push([SIDES[a][sign], flat(p), dot(v[2], p) > 0])
    }
    return [edges, letters]
  }

  compose(picture, w, h, v) {
    const { context: c, canvas, wide, high, ratio, solid } = this, [edges, letters] = this.frame(v)
    c.setTransform(ratio, 0, 0, ratio, 0, 0)
    const paper = c.createRadialGradient(wide / 2, high * .42, 0, wide / 2, high * .42, Math.hypot(wide, high) * .6)
    paper.addColorStop(0, '#262b35'); paper.addColorStop(1, '#0f1116')
    c.fillStyle = paper
    c.fillRect(0, 0, wide, high)
    const lines = front => {
      c.strokeStyle = front ? 'rgba(255,255,255,.3)' : 'rgba(255,255,255,.2)'; c.lineWidth = 1
      c.beginPath()
      for (const [a, b, near] of edges) if (near === front) { c.moveTo(...a); c.lineTo(...b) }
      c.stroke()
      c.font = '600 15px system-ui, sans-serif'; c.textAlign = 'center'; c.textBaseline = 'middle'
      for (const [letter, at, near] of letters) if (near === front) this.word(letter, ...at)
    }
    lines(false)
    c.imageSmoothingEnabled = true
    c.imageSmoothingQuality = 'high'
    c.drawImage(picture, 0, picture.height - h, w, h, 0, 0, wide, high)
    lines(true)
    if (!solid.stated) return
    const mm = this.mm(), steps = [-1, 0, 1, 2, 3].flatMap(e => [1, 2, 5].map(n => n * 10 ** e)).filter(s => s / mm <= wide / 4), length = Math.max(...steps)
    c.fillStyle = '#fff'; c.fillRect(12, high - 14, length / mm, 2)
    c.font = '12px system-ui, sans-serif'; c.textAlign = 'left'; c.textBaseline = 'bottom'
    this.word(`${length} mm`, 12, high - 18)
  }

  word(text, x, y) {
    const { context: c } = this
    c.strokeStyle = 'rgba(0,0,0,.8)'; c.lineWidth = 3; c.lineJoin = 'round'
    c.strokeText(text, x, y); c.fillStyle = '#fff'; c.fillText(text, x, y)
  }
}

// ---------------------------------------------------------------- anywidget

export default {
  render({ model, el }) {
    const root = element('div', { class: 'mnb-viewer mnb-scene', role: 'group', 'aria-label': '3-D scene' })
    const note = element('div', { class: 'mnb-note', role: 'status' }, 'Waiting for the voxels \u2026')
    root.append(note)
    el.append(root)
    let view = null, gone = false
    const impatient = setTimeout(() => { note.textContent = 'Still waiting for the voxels. If no kernel runs, run the cell that made this scene.' }, PATIENCE)
    fetchSolid(model).then(solid => {
      clearTimeout(impatient)
      if (gone) return
      if (solid.type === 'solid') { view = new SceneView(model, solid, root); return }
      note.textContent = `A still picture, because ${solid.why}. Set the traits in Python, such as scene.angles = [90, 0], and run the cell again to see another side.`
      const url = URL.createObjectURL(new Blob([solid.picture], { type: 'image/png' }))
      root.append(element('img', { src: url, alt: 'The scene as Python drew it' }))
    }).catch(error => { clearTimeout(impatient); note.textContent = `The scene cannot be drawn: ${error.message}` })
    return () => { gone = true; clearTimeout(impatient); view?.close() }
  },
}
