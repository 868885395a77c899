// node refusal.mjs ADDRESS [FLAG ...]: what the page says in a browser started with these flags.
import { withPage } from "./browser.mjs";

const [address, ...flags] = process.argv.slice(2);

await withPage(
  async (page) => {
    await page.goto(address);
    await page.waitForSelector("#failure:not([hidden])");
    return { failure: await page.locator("#failure").innerText() };
  },
  { flags: ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", ...flags] }
);
