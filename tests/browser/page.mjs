// node page.mjs ADDRESS PROMPT SCREENSHOT: opens the page, types, waits for the answer.
import { withPage } from "./browser.mjs";

const [address, prompt, screenshot] = process.argv.slice(2);

await withPage(async (page) => {
  await page.goto(address);
  const ready = page.waitForSelector("#prompt:not([disabled])", { timeout: 240_000 });
  const failed = page.waitForSelector("#failure:not([hidden])", { timeout: 240_000 }).then(async (box) => {
    throw new Error(await box.textContent());
  });
  failed.catch(() => {});
  await Promise.race([ready, failed]);
  await page.locator("#prompt").fill(prompt);
  await page.locator("#send").click();
  await page.waitForSelector("#log .model.busy");
  await page.waitForSelector("#log .model:not(.busy)", { timeout: 240_000 });
  if (screenshot) await page.screenshot({ path: screenshot });
  return {
    title: await page.title(), user: await page.locator("#log .user").innerText(),
    answer: await page.locator("#log .model").textContent(), speed: await page.locator("#speed").innerText(),
  };
});
