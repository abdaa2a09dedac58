// SPDX-License-Identifier: Apache-2.0
// The page: a WebSocket of turns (runtime/web/viewer.py) into one article a source.
import { Timeline, clock, colours } from "./timeline.js";

const SPANS = [[30, "30 s"], [120, "2 min"], [300, "5 min"]];
const KEPT_S = 320; // of verdicts
const GONE_S = 3; // after its last verdict a face has left
const MAX_FACES = 6; // shown at once, the latest first
const TABLE_ROWS = 20;
const PICTURE_WIDTH = 640;
const RETRY_MS = 1500;
const RTC_GATHER_MS = 2000;
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);
const sources = new Map(); // name -> SourceView
let hello = null;
let socket = null;
let camera = null; // { stream, connection }
let browser = "none";
let again = false; // this page was the source and nobody pressed Stop: once it may begin by itself

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function say(node, text) { // leaves it alone when nothing changes: a live region speaks only news
  if (node.textContent !== text) node.textContent = text;
}

const number = (p) => (p === null || p === undefined ? "--" : p.toFixed(2));
const offset = (ms) => (ms === null || ms === undefined ? "--" : `${ms >= 0 ? "+" : "−"}${Math.abs(ms).toFixed(0)} ms`);
const faceName = (id) => (id === null ? "No face" : `Face ${id}`);
const inWords = (v) => (v.label === "abstain" ? "No verdict" : v.label === "fake" ? "Fake" : "Real");

// ---------------------------------------------------------------- the connection

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  const decoding = [];
  socket.onopen = () => link("live", "Connected");
  socket.onclose = () => {
    link("lost", "The program does not answer; showing what was last known");
    stopCamera(true);
    setTimeout(connect, RETRY_MS);
  };
  const here = socket;
  socket.onmessage = (event) => {
    if (event.data instanceof ArrayBuffer) {
      decoding.push(picture(event.data));
      return;
    }
    const message = JSON.parse(event.data);
    if (message.type === "hello") welcome(message);
    else if (message.type === "rtc") rtc(message);
    else if (message.type === "turn") {
      turn(message);
      Promise.allSettled(decoding.splice(0)).then(() => {
        if (here.readyState === WebSocket.OPEN) here.send(JSON.stringify({ type: "seen", turn: message.turn }));
      });
    }
  };
}

function link(state, text) {
  $("link").dataset.state = state;
  say($("link"), text);
}

function welcome(message) {
  hello = message;
  sources.forEach((view) => view.article.remove()); // the program may be another one now
  sources.clear();
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  say($("privacy"), (local
    ? "Nothing leaves this device: pictures and sound are judged here."
    : `Pictures and sound are judged on ${location.hostname} and go nowhere else.`) +
    " This page loads nothing from elsewhere and keeps nothing." +
    { show: "", blur: " Faces in the live picture are made unrecognisable before they are shown.",
      hide: " No picture is shown, by choice of whoever started the program." }[message.faces]);
}

function turn(message) {
  browser = message.browser;
  if (camera && browser === "in_use") again = true;
  else if (again && !camera && browser === "away") startCamera();
  cameraPanel();
  $("untrained").hidden = message.trained;
  say($("about"), [message.model_id && `Model ${message.model_id} on ${message.provider}`, message.judged_by]
    .filter(Boolean).join(", "));
  for (const [name, state] of Object.entries(message.sources)) viewOf(name).update(state);
  $("empty").hidden = sources.size > 0;
  say($("empty"), ["waiting", "connecting", "away"].includes(browser)
    ? "Waiting for a browser’s camera." : "No source has started yet.");
  overview();
}

async function picture(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const jpeg = new Uint8Array(buffer, 4 + length);
  const image = jpeg.length ? await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })) : null;
  viewOf(header.source).show(header, image);
}

function viewOf(name) {
  if (!sources.has(name)) {
    const view = new SourceView(name, sources.size);
    sources.set(name, view);
    $("sources").append(view.article);
  }
  return sources.get(name);
}

function overview() {
  const nav = $("overview");
  nav.hidden = sources.size < 2;
  if (nav.hidden) return;
  sources.forEach((view) => {
    if (!view.chip) {
      view.mark = el("span", { class: "mark", "aria-hidden": "true" });
      view.chipText = el("span", { class: "what" });
      view.chip = el("a", { href: `#${view.article.id}` }, view.mark, view.chipText);
      nav.append(view.chip);
    }
    const worst = view.worst();
    view.mark.dataset.label = worst;
    say(view.chipText, `${view.name.split("/").pop()}: ${view.status === "ended" ? "ended" : worst === "abstain" ? "no verdict" : worst}`);
  });
}

// ---------------------------------------------------------------- one source

class SourceView {
  constructor(name, index) {
    this.name = name;
    this.article = $("source-template").content.firstElementChild.cloneNode(true);
    this.article.id = `source-${index}`;
    this.find = (selector) => this.article.querySelector(selector);
    this.find("h2").textContent = name;
    this.article.setAttribute("aria-label", `Source ${name}`);
    this.canvas = this.find(".picture canvas");
    this.faces = new Map(); // id -> { verdicts, track, card }
    this.recent = []; // verdicts of all faces, for the table
    this.span = SPANS[0][0];
    this.end = 0;
    this.drawn = 0;
    this.last = null; // the picture in view: { header, image }
    for (const [seconds, text] of SPANS) {
      const input = el("input", { type: "radio", name: `span-${index}`, value: seconds });
      input.checked = seconds === this.span;
      input.addEventListener("change", () => { this.span = seconds; this.draw(true); });
      this.find(".span").append(el("label", {}, input, text));
    }
    this.find(".table").addEventListener("toggle", () => this.table());
    new ResizeObserver(() => this.draw(true)).observe(this.article);
  }

  update(state) {
    if (this.windows !== undefined && state.windows < this.windows) this.faces.clear(); // started anew
    this.windows = state.windows;
    this.status = state.status;
    this.end = Math.max(this.end, state.t_s);
    for (const v of state.verdicts) this.add(v);
    this.forget();
    const size = state.size && state.has_video ? `${state.size[0]}×${state.size[1]}` : "no picture";
    say(this.find(".facts"), [state.size ? size : "", state.has_audio === false ? "no sound" : "", clock(this.end)].filter(Boolean).join(" · "));
    const status = this.find(".status");
    status.dataset.state = state.status;
    say(status, state.status === "ended" ? "Ended" : state.live ? "Live" : "Reading");
    this.readings(state);
    this.notes(state);
    this.cards();
    this.draw(false);
    if (state.verdicts.length) {
      this.table();
      this.paint(); // the boxes say what the verdicts say now
    }
  }

  add(v) {
    if (!this.faces.has(v.face_id)) this.faces.set(v.face_id, { verdicts: [] });
    const { verdicts } = this.faces.get(v.face_id);
    verdicts.push(v);
    while (verdicts.length && verdicts[0].t_end_s < v.t_end_s - KEPT_S) verdicts.shift();
    this.recent.push(v);
    if (this.recent.length > TABLE_ROWS) this.recent.shift();
  }

  // Faces that left longer ago than anything is kept: over a day they would be thousands.
  forget() {
    for (const [id, face] of this.faces) {
      if (face.verdicts[face.verdicts.length - 1].t_end_s >= this.end - KEPT_S) continue;
      face.card?.root.remove();
      face.track?.root.remove();
      this.faces.delete(id);
    }
  }

  // The latest faces first; of the rest the elements are dropped.
  shownFaces() {
    const last = (face) => face.verdicts[face.verdicts.length - 1].t_end_s;
    return [...this.faces].sort((a, b) => last(b[1]) - last(a[1]) || (a[0] ?? -1) - (b[0] ?? -1)).slice(0, MAX_FACES);
  }

  worst() {
    const now = this.shownFaces().map(([, f]) => f.verdicts[f.verdicts.length - 1]).filter((v) => v.t_end_s > this.end - GONE_S);
    return now.some((v) => v.label === "fake") ? "fake" : now.some((v) => v.label === "real") ? "real" : "abstain";
  }

  cards() {
    const shown = this.shownFaces();
    const current = shown.filter(([, f]) => f.verdicts[f.verdicts.length - 1].t_end_s > this.end - GONE_S);
    const keep = new Set((current.length ? current : shown.slice(0, 1)).map(([id]) => id));
    for (const [id, face] of this.faces) {
      if (!keep.has(id)) {
        face.card?.root.remove();
        face.card = null;
      } else {
        face.card ??= this.makeCard(id);
        face.card.show(face.verdicts[face.verdicts.length - 1], this.end);
      }
    }
  }

  makeCard(id) {
    const mark = el("span", { class: "mark", "aria-hidden": "true" });
    const word = el("span"), why = el("p", { class: "why" }), when = el("span");
    const meters = el("div", { class: "meters" });
    const rows = ["Both together", "Picture", "Voice"].map((name) => {
      const fill = el("i"), line = el("b");
      line.style.left = `calc(${hello.threshold * 100}% - 1px)`;
      const meter = el("div", { class: "meter", role: "meter", "aria-label": `${name}: probability fake`,
        "aria-valuemin": "0", "aria-valuemax": "1" }, fill, line);
      const text = el("span", { class: "number" });
      meters.append(el("span", {}, name), meter, text);
      return { fill, meter, text };
    });
    const root = el("section", { class: "face" },
      el("p", { class: "who" }, el("span", {}, faceName(id)), when),
      el("div", { "aria-live": "polite", "aria-atomic": "true" }, el("p", { class: "said" }, mark, word), why),
      meters);
    this.find(".verdicts .hint").before(root);
    return {
      root,
      show: (v, end) => {
        root.dataset.label = mark.dataset.label = v.label;
        root.dataset.gone = String(v.t_end_s <= end - GONE_S);
        say(word, inWords(v));
        say(why, v.reason ? `${hello.reasons[v.reason]} (${v.reason})` : v.label === "fake" ? blame(v) : "nothing found that points to a forgery");
        say(when, `${v.t_start_s.toFixed(1)} to ${v.t_end_s.toFixed(1)} s`);
        rows.forEach(({ fill, meter, text }, i) => {
          const p = v.shown[i];
          meter.classList.toggle("none", p === null);
          fill.style.width = `${(p ?? 0) * 100}%`;
          if (p === null) {
            meter.removeAttribute("aria-valuenow");
            meter.setAttribute("aria-valuetext", "no score");
          } else {
            meter.setAttribute("aria-valuenow", p.toFixed(2));
            meter.setAttribute("aria-valuetext", p.toFixed(2));
          }
          say(text, number(p));
        });
      },
    };
  }

  draw(now) {
    const at = performance.now();
    if (!now && at - this.drawn < (calm.matches ? 1000 : 75)) return;
    this.drawn = at;
    const shown = this.shownFaces().filter(([, f]) => f.verdicts[f.verdicts.length - 1].t_end_s > this.end - this.span);
    const keep = new Set(shown.map(([id]) => id));
    for (const [id, face] of this.faces) {
      if (!keep.has(id)) {
        face.track?.root.remove();
        face.track = null;
        continue;
      }
      if (!face.track) {
        const canvas = el("canvas");
        const root = el("div", { class: "track" }, el("h4", {}, faceName(id)), canvas);
        this.find(".faces").append(root);
        face.track = { root, timeline: new Timeline(canvas, (v) => this.cursor(id, v)) };
      }
      face.track.timeline.draw(face.verdicts, Math.max(this.end, this.span), this.span, hello.threshold);
      this.describe(id, face);
    }
  }

  // For those who cannot see the lanes; not too often, it would be read out again and again.
  describe(id, face) {
    const at = performance.now();
    if (face.described && at - face.described < 5000) return;
    face.described = at;
    const count = { fake: 0, real: 0, abstain: 0 };
    const recent = face.verdicts.filter((v) => v.t_end_s > this.end - this.span);
    recent.forEach((v) => { count[v.label] += 1; });
    face.track.timeline.canvas.setAttribute("aria-label",
      `${faceName(id)}, last ${this.span} seconds: ${recent.length} windows, ${count.fake} fake, ` +
      `${count.real} real, ${count.abstain} without a verdict. Arrow keys read single windows.`);
  }

  cursor(id, v) {
    say(this.find(".cursor"), v === null ? "" :
      `${v.t_start_s.toFixed(1)} to ${v.t_end_s.toFixed(1)} s  ${faceName(id)}  ${v.label}${v.reason ? `: ${v.reason}` : ""}` +
      `  both ${number(v.shown[0])}  picture ${number(v.shown[1])}  voice ${number(v.shown[2])}  A/V ${offset(v.av_offset_ms)}`);
  }

  readings(state) {
    const latency = state.latency_ms;
    const rows = [
      ["A/V offset", offset(state.av_offset_ms), state.av_offset_ms === null ? "not measured" : state.av_offset_ms > 0 ? "sound late" : state.av_offset_ms < 0 ? "sound early" : ""],
      ["Latency p50", latency ? `${latency.p50.toFixed(0)} ms` : "--", ""],
      ["Latency p99", latency ? `${latency.p99.toFixed(0)} ms` : "--", latency ? `of ${latency.of}` : ""],
      ["Coverage", state.coverage === null ? "--" : `${Math.round(state.coverage * 100)} %`, `of ${state.windows}`],
      ["Judged fake", String(state.labels.fake), `of ${state.windows}`],
      ["Lost or repaired", String(lost(state.drops)), ""],
      ["Pictures", state.pictures_per_s === null ? "--" : `${state.pictures_per_s.toFixed(1)}`, "a second"],
      ["Sound level", state.level_dbfs === null ? "--" : `${state.level_dbfs.toFixed(0)} dB`, "of full scale"],
    ];
    const list = this.find(".readings");
    if (!list.children.length) {
      rows.forEach(([name]) => list.append(el("div", {}, el("dt", {}, name), el("dd", {}, el("span"), " ", el("small")))));
    }
    rows.forEach(([, value, note], i) => {
      say(list.children[i].querySelector("span"), value);
      say(list.children[i].querySelector("small"), note);
    });
  }

  notes(state) {
    const abstained = Object.entries(state.reasons).sort((a, b) => b[1] - a[1]);
    fill(this.find(".why ul"), abstained.map(([code, n]) => [n, hello.reasons[code] || code, code]), "None did so far.");
    const drops = Object.entries(state.drops).map(([cause, n]) => [n, hello.drops[cause] || cause, ""]);
    fill(this.find(".lost ul"), [...drops, ...state.warnings.map((w) => ["", w, ""])], "Nothing so far.");
  }

  table() {
    if (!this.find(".table").open) return;
    this.find("tbody").replaceChildren(...[...this.recent].reverse().map((v) => el("tr", {},
      ...[`${v.t_start_s.toFixed(1)} to ${v.t_end_s.toFixed(1)} s`, v.face_id === null ? "--" : String(v.face_id),
        v.reason ? `abstain: ${v.reason}` : v.label, ...v.shown.map(number), offset(v.av_offset_ms), `${v.latency_ms.toFixed(0)} ms`,
      ].map((text) => el("td", {}, text)))));
  }

  show(header, image) {
    this.last?.image?.close();
    this.last = { header, image };
    const n = header.faces.length;
    const what = `${n === 0 ? "No face is followed" : n === 1 ? "1 face is followed" : `${n} faces are followed`}`;
    const blurred = { show: "", blur: "; faces are made unrecognisable", hide: "; pictures are not shown" }[hello?.faces ?? "show"];
    say(this.find("figcaption"), what + blurred);
    this.canvas.setAttribute("aria-label", `Live picture. ${what}.`);
    this.end = Math.max(this.end, header.t_s);
    this.paint();
  }

  paint() {
    if (!this.last) return;
    const { canvas, last: { header, image } } = this;
    const width = PICTURE_WIDTH; // also of a small one: labels stay readable
    const height = Math.round((width * header.size[1]) / header.size[0]);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const ctx = canvas.getContext("2d"), c = colours();
    if (image) ctx.drawImage(image, 0, 0, width, height);
    else { ctx.fillStyle = c.sunk; ctx.fillRect(0, 0, width, height); }
    for (const face of header.faces) {
      const verdicts = this.faces.get(face.id)?.verdicts;
      const latest = verdicts?.[verdicts.length - 1];
      box(ctx, c, face, latest ? latest.label : null);
    }
  }
}

// Which modality a fake verdict comes from, as far as the numbers say so.
function blame(v) {
  const [, picture, voice] = v.shown.map((p) => p !== null && p >= hello.threshold);
  if (picture && voice) return "picture and voice are each above the threshold";
  if (picture) return "the picture alone is above the threshold";
  if (voice) return "the voice alone is above the threshold";
  return "neither picture nor voice alone is above the threshold: both together are";
}

// Solid and thin: real; thick: fake; dashed: no verdict.
function box(ctx, c, face, label) {
  const { width, height } = ctx.canvas;
  const unit = Math.max(1, width / 420);
  const [x0, y0, x1, y1] = face.box.map((v, i) => v * (i % 2 ? height : width));
  const colour = label === "fake" ? c.fake : label === "real" ? c.real : c.abstain;
  ctx.strokeStyle = colour;
  ctx.lineWidth = (label === "fake" ? 4 : 2) * unit;
  ctx.setLineDash(label === "fake" || label === "real" ? [] : [5 * unit, 4 * unit]);
  ctx.strokeRect(x0, y0, x1 - x0, y1 - y0);
  ctx.setLineDash([]);
  const text = `${faceName(face.id)}${label ? `  ${label === "abstain" ? "no verdict" : label}` : ""}`;
  ctx.font = `600 ${12 * unit}px system-ui, sans-serif`;
  const wide = ctx.measureText(text).width + 10 * unit, high = 18 * unit;
  const left = Math.max(0, Math.min(x0 - ctx.lineWidth / 2, width - wide));
  const top = y0 > high ? y0 - high : y1;
  ctx.fillStyle = colour;
  ctx.fillRect(left, top, wide, high);
  ctx.fillStyle = c.card;
  ctx.textBaseline = "middle";
  ctx.fillText(text, left + 5 * unit, top + high / 2 + 0.5);
}

// A moment without a picture is what the other losses lead to: not counted twice.
function lost({ gap, ...causes }) {
  return Object.values(causes).reduce((a, b) => a + b, 0) || gap || 0;
}

function fill(list, rows, nothing) {
  const wanted = JSON.stringify(rows);
  if (list.dataset.shown === wanted) return;
  list.dataset.shown = wanted;
  list.replaceChildren(...(rows.length ? rows.map(([n, text, code]) => el("li", {},
    el("span", { class: "count" }, String(n)), el("span", {}, text, code ? " " : "", el("span", { class: "code" }, code)))) :
    [el("li", { class: "nothing" }, nothing)]));
}

// ---------------------------------------------------------------- this browser's camera

function cameraPanel() {
  $("camera").hidden = browser === "none";
  if (browser === "none") return;
  const mine = camera !== null;
  const insecure = !window.isSecureContext || !navigator.mediaDevices;
  $("camera-start").hidden = mine || browser === "ended" || browser === "in_use";
  $("camera-start").disabled = insecure || !["waiting", "away"].includes(browser);
  $("camera-stop").hidden = !mine;
  const host = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname) ? "to the program on this device" : `to ${location.hostname}`;
  say($("camera-text"), insecure
    ? "Browsers give a camera only to https:// pages and to localhost. Open this page on the machine itself, or start the program with --web-cert and --web-key."
    : browser === "ended" ? "The stream has ended. Start the program again for another."
    : mine && browser !== "in_use" ? "Connecting, and bringing picture and sound into step. This takes a few seconds."
    : mine ? `Picture and sound go encrypted ${host}, and nowhere else. When this tab is closed, the stream ends unless it is started again within ${hello.return_wait_s} s.`
    : browser === "away" ? `The browser that was the source has gone. Start here, and the stream goes on: picture and sound would go encrypted ${host}, and nowhere else.`
    : browser === "waiting" ? `Picture and sound would go encrypted ${host}, and nowhere else. Your browser will ask you first.`
    : "Another browser is the source.");
}

function cameraError(text) {
  $("camera-error").hidden = !text;
  say($("camera-error"), text);
}

async function startCamera() {
  again = false;
  cameraError("");
  let stream;
  $("camera-start").disabled = true;
  try {
    // Sound as it is: what cleans it up for a call also changes what is judged.
    stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 25, max: 30 } },
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
  } catch (error) {
    cameraError({
      NotAllowedError: "The camera or the microphone was refused. Allow both for this page in the browser’s settings.",
      NotFoundError: "No camera or no microphone was found.",
      NotReadableError: "The camera or the microphone is in use by another program.",
    }[error.name] || `The camera cannot be used: ${error.message}`);
    return;
  }
  const connection = new RTCPeerConnection({ iceServers: [] });
  camera = { stream, connection };
  try {
    for (const track of stream.getTracks()) {
      if (track.kind === "video") track.contentHint = "detail"; // rather fewer pictures than coarse ones
      connection.addTransceiver(track, { direction: "sendonly", streams: [stream] });
      track.addEventListener("ended", () => stopCamera(true)); // pulled out, or taken away
    }
    await connection.setLocalDescription();
    await gathered(connection);
    socket.send(JSON.stringify({ type: "offer", sdp: connection.localDescription.sdp }));
  } catch (error) {
    cameraError(`The connection cannot be made: ${error.message}`);
    stopCamera(true);
  }
  cameraPanel();
}

function gathered(connection) {
  return new Promise((done) => {
    const check = () => connection.iceGatheringState === "complete" && done();
    connection.addEventListener("icegatheringstatechange", check);
    setTimeout(done, RTC_GATHER_MS);
    check();
  });
}

async function rtc(message) {
  if (message.error || message.ended) {
    const mine = camera !== null;
    stopCamera(true);
    if (message.error) cameraError(message.error);
    else if (mine) cameraError(`Ended: ${message.ended}.`);
    return;
  }
  try {
    await camera?.connection.setRemoteDescription({ type: "answer", sdp: message.sdp });
  } catch (error) {
    cameraError(`The connection cannot be made: ${error.message}`);
    stopCamera(true);
  }
}

// lost: nobody pressed Stop, so the program waits for another start.
function stopCamera(lost) {
  again = again && lost;
  if (!camera) return;
  const { stream, connection } = camera;
  camera = null;
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "hang_up", lost }));
  stream.getTracks().forEach((track) => track.stop());
  connection.close();
  cameraPanel();
}

$("camera-start").addEventListener("click", startCamera);
$("camera-stop").addEventListener("click", () => stopCamera(false));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => sources.forEach((view) => view.draw(true)));
connect();
