// Debian's Chromium, headless, with WebGPU on the CPU (SwiftShader).
import { chromium } from "playwright-core";

const FLAGS = [
  "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--no-sandbox", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

// Calls use(page) and prints what it returns as JSON, with the hosts that were asked for anything.
export async function withPage(use, options = {}) {
  const { flags = FLAGS } = options;
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, headless: true, args: flags });
  const hosts = new Set();
  try {
    const page = await browser.newPage({ viewport: { width: 900, height: 640 }, deviceScaleFactor: 1.5 });
    page.on("request", (request) => request.url().startsWith("http") && hosts.add(new URL(request.url()).host));
    page.on("console", (message) => console.error(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => console.error(`page error: ${error.message}`));
    const result = await use(page);
    console.log(JSON.stringify({ ...result, hosts: [...hosts] }));
  } finally {
    await browser.close();
  }
}
