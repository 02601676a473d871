// An encoder of animated GIF files, version 89a: one palette for all frames, of each only the part that has changed.

const TRANSPARENT = 255;
const MOST_CODES = 4096;

/** Collects frames and turns them into a file. */
export class Gif {
  /** `colours`: [r, g, b] triples that the palette must have, whatever else occurs. */
  constructor(width, height, colours) {
    this.width = width;
    this.height = height;
    this.fixed = colours;
    this.frames = [];
  }

  /** Add a picture (RGBA bytes), shown for so many milliseconds. */
  add(pixels, milliseconds) {
    this.frames.push({ pixels, delay: Math.max(2, Math.round(milliseconds / 10)) });
  }

  /** The file as bytes; `progress(share)` is awaited between frames. */
  async bytes(progress = async () => {}) {
    const palette = makePalette(this.frames, this.fixed);
    const nearest = indexer(palette);
    const out = new Writer();
    out.text("GIF89a");
    out.short(this.width);
    out.short(this.height);
    out.put(0xf7, 0, 0); // a palette of 256 colours, background 0, square pixels
    for (let at = 0; at < 256; at += 1) out.put(...(palette[at] ?? [0, 0, 0]));
    out.put(0x21, 0xff, 11);
    out.text("NETSCAPE2.0");
    out.put(3, 1, 0, 0, 0); // repeat for ever
    let before = null;
    for (const [number, frame] of this.frames.entries()) {
      const now = new Uint8Array(this.width * this.height);
      for (let at = 0; at < now.length; at += 1) now[at] = nearest(frame.pixels, at * 4);
      this.#frame(out, now, before, frame.delay);
      before = now;
      await progress((number + 1) / this.frames.length);
    }
    out.put(0x3b);
    return out.bytes();
  }

  #frame(out, now, before, delay) {
    const box = before ? changedBox(now, before, this.width, this.height) : [0, 0, this.width, this.height];
    const [left, top, width, height] = box;
    const part = new Uint8Array(width * height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const at = (top + y) * this.width + left + x;
        part[y * width + x] = before && before[at] === now[at] ? TRANSPARENT : now[at];
      }
    }
    out.put(0x21, 0xf9, 4, before ? 0x05 : 0x04); // keep what is there; from the second frame on with transparency
    out.short(delay);
    out.put(TRANSPARENT, 0);
    out.put(0x2c);
    for (const value of box) out.short(value);
    out.put(0, 8); // no palette of its own; 8 bits a pixel
    const packed = compress(part);
    for (let at = 0; at < packed.length; at += 255) {
      const block = packed.subarray(at, at + 255);
      out.put(block.length);
      out.array(block);
    }
    out.put(0);
  }
}

/** Left, top, width and height of what differs between two frames; one pixel where nothing does. */
function changedBox(now, before, width, height) {
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let at = 0; at < now.length; at += 1) {
    if (now[at] === before[at]) continue;
    const x = at % width;
    const y = (at - x) / width;
    if (x < left) left = x;
    if (x > right) right = x;
    if (y < top) top = y;
    bottom = y;
  }
  return right < 0 ? [0, 0, 1, 1] : [left, top, right - left + 1, bottom - top + 1];
}

/** Up to 255 colours: the fixed ones, then the most frequent, 5 bits a channel told apart. */
function makePalette(frames, fixed) {
  const counts = new Uint32Array(32768);
  const sums = new Float64Array(3 * 32768);
  for (const { pixels } of frames) {
    for (let at = 0; at < pixels.length; at += 4) {
      const bin = fiveBits(pixels, at);
      counts[bin] += 1;
      for (let channel = 0; channel < 3; channel += 1) sums[3 * bin + channel] += pixels[at + channel];
    }
  }
  const bins = [...counts.keys()].filter((bin) => counts[bin]).sort((a, b) => counts[b] - counts[a]);
  const mean = (bin) => [0, 1, 2].map((channel) => Math.round(sums[3 * bin + channel] / counts[bin]));
  return [...fixed, ...bins.slice(0, TRANSPARENT).map(mean)].slice(0, TRANSPARENT);
}

function fiveBits(pixels, at) {
  return ((pixels[at] >> 3) << 10) | ((pixels[at + 1] >> 3) << 5) | (pixels[at + 2] >> 3);
}

/** A function that finds the palette's nearest colour for a pixel; what was found once is kept. */
function indexer(palette) {
  const known = new Map();
  return (pixels, at) => {
    const [r, g, b] = [pixels[at], pixels[at + 1], pixels[at + 2]];
    const key = (r << 16) | (g << 8) | b;
    let found = known.get(key);
    if (found !== undefined) return found;
    let least = Infinity;
    palette.forEach(([pr, pg, pb], index) => {
      const distance = 2 * (r - pr) ** 2 + 4 * (g - pg) ** 2 + 3 * (b - pb) ** 2;
      if (distance < least) [least, found] = [distance, index];
    });
    known.set(key, found);
    return found;
  };
}

/** LZW as GIF has it: 8-bit pixels, codes of 9 to 12 bits, lowest bit first. */
function compress(pixels) {
  const clear = 256;
  const out = new Writer();
  const children = new Int16Array(MOST_CODES * 256).fill(-1); // by code and next pixel
  const used = [];
  let [size, next, bits, held] = [9, clear + 2, 0, 0];
  const emit = (code) => {
    held |= code << bits;
    bits += size;
    while (bits >= 8) {
      out.put(held & 255);
      held >>>= 8;
      bits -= 8;
    }
  };
  emit(clear);
  let code = pixels[0];
  for (let at = 1; at < pixels.length; at += 1) {
    const place = code * 256 + pixels[at];
    if (children[place] >= 0) {
      code = children[place];
      continue;
    }
    emit(code);
    code = pixels[at];
    if (next < MOST_CODES) {
      if (next === 1 << size) size += 1; // the reader is one code behind, so it widens one later
      children[place] = next;
      used.push(place);
      next += 1;
    } else {
      emit(clear);
      for (const old of used) children[old] = -1;
      used.length = 0;
      [size, next] = [9, clear + 2];
    }
  }
  emit(code);
  if (next === 1 << size && size < 12) size += 1;
  emit(clear + 1);
  if (bits) out.put(held & 255);
  return out.bytes();
}

/** Bytes that grow. */
class Writer {
  constructor() {
    this.buffer = new Uint8Array(65536);
    this.length = 0;
  }

  #room(more) {
    if (this.length + more <= this.buffer.length) return;
    const larger = new Uint8Array(2 * this.buffer.length + more);
    larger.set(this.buffer);
    this.buffer = larger;
  }

  put(...values) {
    this.#room(values.length);
    for (const value of values) this.buffer[this.length++] = value;
  }

  short(value) {
    this.put(value & 255, value >> 8);
  }

  text(text) {
    this.put(...[...text].map((letter) => letter.charCodeAt(0)));
  }

  array(values) {
    this.#room(values.length);
    this.buffer.set(values, this.length);
    this.length += values.length;
  }

  bytes() {
    return this.buffer.slice(0, this.length);
  }
}
