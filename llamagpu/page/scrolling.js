// Scrolling: follows growing text only while the reader is at the end, and keeps the input above a phone's keyboard.

import { byId } from "./elements.js";

const NEAR = 48; // pixels from the end that still count as the end

export class Scrolling {
  constructor() {
    this.area = byId("scroll");
    this.follows = true;
    this.area.addEventListener("scroll", () => this.look(), { passive: true });
    byId("latest").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.grown()).observe(this.area);
    globalThis.visualViewport?.addEventListener("resize", fitViewport);
  }

  look() {
    this.follows = this.area.scrollHeight - this.area.scrollTop - this.area.clientHeight < NEAR;
    byId("latest").hidden = this.follows;
  }

  /** The text has grown. */
  grown() {
    if (this.follows) this.area.scrollTop = this.area.scrollHeight;
    else this.look();
  }

  toEnd() {
    this.follows = true;
    this.grown();
    byId("latest").hidden = true;
  }
}

/** A keyboard on the screen makes the visible part smaller. Some browsers do not tell the layout. */
function fitViewport() {
  const { height, scale } = globalThis.visualViewport;
  if (scale === 1) document.documentElement.style.setProperty("--visible-height", `${height}px`);
}
