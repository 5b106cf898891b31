// Opens a page in Debian's Chromium and tells what is on it, as one line of JSON: for the tests of pages.
//
// usage: NODE_PATH=…/node_modules node scripts/browser.js ORDER
//
// ORDER is JSON: {"chromium", "url", "wait_until", "wait_for": "a selector", "width", "full_page",
// "shots": [{"path", "scheme": "light"|"dark", "print": true|false}], "then": {"click": "a selector", "wait_for", "path"}}. The answer has
// "console" (errors and warnings), "requests" (addresses beside that of the page), "data" (exact figures by key), "ids" (of plots),
// "text", "title", and "overflow": the page is wider than the window.
"use strict";
const { chromium } = require("playwright-core");

const main = async (order) => {
  const browser = await chromium.launch({
    executablePath: order.chromium,
    // As root there is no sandbox, and a container's /dev/shm is small.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
  });
  try {
    const page = await browser.newPage({ viewport: { width: order.width ?? 1280, height: 900 } });
    const heard = [], requests = [];
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && heard.push(message.text()));
    page.on("pageerror", (error) => heard.push(String(error)));
    page.on("request", (request) => request.url() !== order.url && requests.push(request.url()));
    await page.goto(order.url, { waitUntil: order.wait_until ?? "load", timeout: 60000 });
    if (order.wait_for) await page.waitForSelector(order.wait_for, { timeout: 60000, state: "attached" });
    const seen = await page.evaluate(() => ({
      data: Object.fromEntries([...document.querySelectorAll("data[data-key]")].map((it) => [it.dataset.key, it.value])),
      ids: [...document.querySelectorAll("figure.plot")].map((figure) => figure.id),
      text: document.body.innerText,
      title: document.title,
      overflow: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    }));
    for (const { path, scheme, print } of order.shots ?? []) {
      await page.emulateMedia({ colorScheme: scheme ?? "light", media: print ? "print" : "screen" });
      await page.screenshot({ path, fullPage: order.full_page ?? true });
    }
    if (order.then) {
      await page.emulateMedia({ colorScheme: "light", media: "screen" });
      await page.click(order.then.click, { timeout: 60000 });
      await page.waitForSelector(order.then.wait_for, { timeout: 60000 });
      await page.screenshot({ path: order.then.path });
    }
    return { console: heard, requests, ...seen };
  } finally {
    await browser.close();
  }
};

main(JSON.parse(process.argv[2])).then(
  (answer) => console.log(JSON.stringify(answer)),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
