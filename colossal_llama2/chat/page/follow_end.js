// Keep the end of a growing text in view, unless the reader has scrolled up to read.

const NEAR = 48; // pixels from the end that still count as the end

export class FollowEnd {
  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} button shown while the end is out of view; brings the reader back.
   */
  constructor(scroller, button) {
    this.scroller = scroller;
    this.button = button;
    this.following = true;
    scroller.addEventListener("scroll", () => this.look(), { passive: true });
    new ResizeObserver(() => this.grown()).observe(scroller);
    button.addEventListener("click", () => {
      this.toEnd();
      scroller.focus({ preventScroll: true });
    });
  }

  look() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.button.hidden = this.following;
  }

  /** Call after the text has grown. */
  grown() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.look();
  }

  toEnd() {
    this.following = true;
    this.button.hidden = true;
    this.grown();
  }
}
