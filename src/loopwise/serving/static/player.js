// The clock: which step is shown. It plays no faster than the steps arrive.

export class Player {
  constructor(onTime) {
    this.onTime = onTime;
    this.time = 0;
    this.length = 0; // steps that have arrived
    this.end = 0; // the last step of what is shown, where it stops
    this.expecting = false; // whether more are on their way
    this.playing = false;
    this.speed = 4; // steps a second
    this.timer = 0;
  }

  play() {
    if (this.time >= this.end && !this.expecting) this.time = 0;
    this.playing = true;
    this.onTime();
    this.#wait();
  }

  pause() {
    this.playing = false;
    clearTimeout(this.timer);
    this.onTime();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  seek(time) {
    if (this.playing) this.pause();
    this.time = Math.max(0, Math.min(time, this.length));
    this.onTime();
  }

  /** Begin anew, at a time. */
  reset(time = 0) {
    clearTimeout(this.timer);
    this.playing = false;
    this.expecting = false;
    this.length = this.end = 0;
    this.time = time;
  }

  /** Take note of what has arrived. */
  arrived(length, expecting, end) {
    [this.length, this.expecting, this.end] = [length, expecting, end];
  }

  #wait() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#tick(), 1000 / this.speed);
  }

  #tick() {
    if (!this.playing) return;
    const last = this.expecting ? this.length : this.end;
    this.time = Math.min(this.time + 1, last);
    if (this.time >= last && !this.expecting) this.playing = false;
    this.onTime();
    if (this.playing) this.#wait();
  }
}
