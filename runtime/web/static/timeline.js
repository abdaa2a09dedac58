// SPDX-License-Identifier: Apache-2.0
// One face over time: a lane each for both together, the picture, the voice; a strip of labels.

const LANES = [["Both", 0], ["Picture", 1], ["Voice", 2]];
const LABEL_WIDTH = 58; // px, of the lanes' names
const STRIP = 12; // px, of the labels
const AXIS = 18; // px, of the seconds
const GAP = 4; // px between lanes
const MAX_HOP_S = 1.0; // verdicts farther apart are not joined

export class Timeline {
  // verdicts: ascending in time, as in the state; onCursor(verdict or null)
  constructor(canvas, onCursor) {
    this.canvas = canvas;
    this.onCursor = onCursor;
    this.verdicts = [];
    this.cursor = null; // seconds
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.addEventListener("pointermove", (e) => this.point(e));
    canvas.addEventListener("pointerdown", (e) => this.point(e));
    canvas.addEventListener("pointerleave", () => this.moveTo(null));
    canvas.addEventListener("blur", () => this.moveTo(null));
    canvas.addEventListener("keydown", (e) => this.key(e));
  }

  draw(verdicts, end, span, threshold) {
    Object.assign(this, { verdicts, end, span, threshold });
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const ctx = canvas.getContext("2d");
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.clearRect(0, 0, width, height);
    const c = colours();
    const laneHeight = (height - STRIP - AXIS - 3 * GAP) / 3;
    const x = (t) => LABEL_WIDTH + ((t - (end - span)) / span) * (width - LABEL_WIDTH);
    const visible = verdicts.filter((v) => v.t_end_s > end - span - 2);
    ctx.font = "12px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    LANES.forEach(([name, index], row) => {
      const top = row * (laneHeight + GAP);
      ctx.fillStyle = c.lane;
      ctx.fillRect(LABEL_WIDTH, top, width - LABEL_WIDTH, laneHeight);
      ctx.fillStyle = c.soft;
      ctx.fillText(name, 0, top + laneHeight / 2);
    });
    ctx.save();
    ctx.beginPath();
    ctx.rect(LABEL_WIDTH, 0, width - LABEL_WIDTH, height);
    ctx.clip();
    this.axis(ctx, c, x, height, width);
    LANES.forEach(([, index], row) => {
      this.lane(ctx, c, x, visible, index, row * (laneHeight + GAP), laneHeight);
    });
    this.strip(ctx, c, x, visible, 3 * (laneHeight + GAP));
    if (this.cursor !== null) {
      ctx.fillStyle = c.ink;
      ctx.fillRect(x(this.cursor) - 0.5, 0, 1, height - AXIS);
    }
    ctx.restore();
  }

  axis(ctx, c, x, height, width) {
    const step = [1, 2, 5, 10, 30, 60].find((s) => (width - LABEL_WIDTH) * (s / this.span) > 56) || 120;
    ctx.fillStyle = c.soft;
    ctx.textAlign = "center";
    for (let t = Math.ceil(Math.max(0, this.end - this.span) / step) * step; t <= this.end; t += step) {
      ctx.fillRect(Math.round(x(t)), height - AXIS, 1, 4);
      if (x(t) > LABEL_WIDTH + 14 && x(t) < width - 14) ctx.fillText(clock(t), x(t), height - 6);
    }
    ctx.textAlign = "start";
  }

  lane(ctx, c, x, verdicts, index, top, height) {
    const y = (p) => top + height - 1 - p * (height - 2);
    ctx.strokeStyle = c.soft;
    ctx.setLineDash([3, 4]);
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(LABEL_WIDTH, y(this.threshold));
    ctx.lineTo(x(this.end), y(this.threshold));
    ctx.globalAlpha = 0.55;
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.setLineDash([]);
    verdicts.forEach((v, i) => {
      const from = start(verdicts, i), p = v.shown[index];
      if (p === null) {
        hatch(ctx, c, x(from), top, x(v.t_end_s) - x(from), height);
        return;
      }
      const colour = v.label === "abstain" ? c.abstain : p >= this.threshold ? c.fake : c.real;
      ctx.fillStyle = colour;
      ctx.globalAlpha = 0.16;
      ctx.fillRect(x(from), y(p), x(v.t_end_s) - x(from), top + height - y(p));
      ctx.globalAlpha = 1;
      ctx.strokeStyle = colour;
      ctx.lineWidth = 2;
      ctx.beginPath();
      const before = verdicts[i - 1];
      if (before && before.shown[index] !== null && from === before.t_end_s) {
        ctx.moveTo(x(from), y(before.shown[index]));
        ctx.lineTo(x(from), y(p));
      } else {
        ctx.moveTo(x(from), y(p));
      }
      ctx.lineTo(x(v.t_end_s), y(p));
      ctx.stroke();
    });
  }

  // Fake fills the strip, real is a thin line, an abstention is hatched: three shapes.
  strip(ctx, c, x, verdicts, top) {
    verdicts.forEach((v, i) => {
      const from = x(start(verdicts, i)), width = x(v.t_end_s) - from + 0.5;
      if (v.label === "abstain") {
        hatch(ctx, c, from, top, width, STRIP);
      } else {
        ctx.fillStyle = v.label === "fake" ? c.fake : c.real;
        const thick = v.label === "fake" ? STRIP : 4;
        ctx.fillRect(from, top + (STRIP - thick) / 2, width, thick);
      }
    });
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - LABEL_WIDTH) / (box.width - LABEL_WIDTH);
    this.moveTo(share < 0 ? null : this.end - this.span + share * this.span);
  }

  key(event) {
    if (!this.verdicts.length) return;
    const here = this.cursor === null ? this.verdicts.length : this.verdicts.indexOf(this.at(this.cursor));
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: this.verdicts.length - 1 }[event.key];
    if (event.key === "Escape") this.moveTo(null);
    if (to === undefined) return;
    event.preventDefault();
    const v = this.verdicts[Math.max(0, Math.min(this.verdicts.length - 1, to))];
    this.moveTo(v.t_end_s - 0.01);
  }

  at(t) {
    return this.verdicts.find((v, i) => t <= v.t_end_s && t > start(this.verdicts, i)) || null;
  }

  moveTo(t) {
    this.cursor = t;
    this.onCursor(t === null ? null : this.at(t));
    if (this.end !== undefined) this.draw(this.verdicts, this.end, this.span, this.threshold);
  }
}

// A verdict is drawn over what is new in its window: from the end of the one before.
function start(verdicts, i) {
  const v = verdicts[i], before = verdicts[i - 1];
  if (before && v.t_end_s - before.t_end_s <= MAX_HOP_S) return before.t_end_s;
  return v.t_end_s - Math.min(0.2, v.t_end_s - v.t_start_s);
}

function hatch(ctx, c, left, top, width, height) {
  if (width <= 0) return;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  ctx.strokeStyle = c.abstain;
  ctx.globalAlpha = 0.45;
  ctx.lineWidth = 1;
  ctx.beginPath();
  const first = Math.floor((left - height) / 6) * 6;
  for (let at = first; at < left + width; at += 6) {
    ctx.moveTo(at, top + height);
    ctx.lineTo(at + height, top);
  }
  ctx.stroke();
  ctx.restore();
}

export function clock(t) {
  const s = Math.floor(t % 60);
  return t < 60 ? `${s} s` : `${Math.floor(t / 60)}:${String(s).padStart(2, "0")}`;
}

export function colours() {
  const css = getComputedStyle(document.documentElement);
  const get = (name) => css.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(
    ["ink", "soft", "line", "lane", "fake", "real", "abstain", "card", "sunk"].map((n) => [n, get(n)]),
  );
}
