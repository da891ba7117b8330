// Drives one Chromium by playwright-core for the viewers' tests: a JSON command a line in, a JSON answer a line out.
// Arguments: the folder of playwright-core, the path of chromium.
'use strict';
const readline = require('node:readline');
const [playwright, executablePath] = process.argv.slice(2);
const { chromium } = require(playwright);

const OPTIONS = [
  '--no-sandbox', // root, in a container; it sees loopback alone
  '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist',
  '--force-color-profile=srgb',
];
const PATIENCE_MS = 60000;
let browser;
let page;
let complaints = [];

const commands = {
  // Opens a page anew. Whatever is asked of another origin than the page's is refused: no network is needed.
  async open({ url, width, height }) {
    if (page) await page.context().close();
    const context = await browser.newContext({ viewport: { width, height }, deviceScaleFactor: 1 });
    context.setDefaultTimeout(PATIENCE_MS);
    const { origin } = new URL(url);
    await context.route((to) => to.protocol.startsWith('http') && to.origin !== origin, (route) => route.abort());
    await context.addInitScript(prepare);
    page = await context.newPage();
    complaints = [];
    page.on('console', (message) => { if (message.type() === 'error') complaints.push(message.text()); });
    page.on('pageerror', (error) => complaints.push(String(error)));
    await page.goto(url, { waitUntil: 'domcontentloaded' });
    await page.waitForFunction(shown, null, { polling: 100 });
    const tour = page.getByText('Skip all');
    if (await tour.count()) await tour.first().click();
  },

  // Opens a series as a person does, by a double click on its description, and waits until it is there.
  async choose({ description, segmentation, series }) {
    await page.getByText(description, { exact: true }).first().dblclick();
    await page.waitForFunction(segmentation ? segmented : showing, series, { polling: 100 });
  },

  // Goes to the image with this SOP Instance UID.
  async show({ sop }) {
    const found = await page.evaluate(async (uid) => {
      const viewport = window.opened();
      const index = viewport.getImageIds().findIndex((id) => id.includes(`/instances/${uid}/`));
      if (index >= 0) await viewport.setImageIdIndex(index);
      return index;
    }, sop);
    if (found < 0) throw new Error('the viewport has no such image');
    await page.waitForFunction((index) => {
      const viewport = window.opened();
      return viewport.getImageIds().indexOf(viewport.getCurrentImageId()) === index;
    }, found, { polling: 50 });
  },

  // Writes a picture of the page once it stands still, without the words and signs that lie on the images if `bare`;
  // tells where on it the viewport is, and points (LPS, mm).
  async look({ path, points, bare }) {
    await page.mouse.move(2, 2);
    const style = bare ? '* { visibility: hidden !important } canvas { visibility: visible !important }' : undefined;
    await page.evaluate(still, 2);
    await page.screenshot({ path, animations: 'disabled', caret: 'hide', style });
    return page.evaluate((places) => {
      const viewport = window.opened();
      const box = viewport.canvas.getBoundingClientRect();
      return {
        box: [box.left, box.top, box.right, box.bottom],
        points: places.map((place) => viewport.worldToCanvas(place)).map(([x, y]) => [x + box.left, y + box.top]),
      };
    }, points);
  },

  async press({ button }) {
    await page.getByRole('button', { name: button, exact: true }).click();
  },

  // Opens the panel at the right, where a segmentation's names are.
  async unfold() {
    await page.locator('[data-cy="side-panel-header-right"]').first().click();
  },

  async text() {
    return page.evaluate(() => document.body.innerText);
  },

  async complaints() {
    return complaints;
  },
};

// These run in the page, where OHIF leaves cornerstone and its services in the window.
function prepare() {
  window.opened = () => {
    const elements = window.cornerstone ? window.cornerstone.getEnabledElements() : [];
    return elements.length ? elements[0].viewport : undefined;
  };
}

function shown() {
  const viewport = window.opened();
  return Boolean(viewport && viewport.getImageIds().length && viewport.viewportStatus === 'rendered');
}

// Waits until the images have not changed for so many looks in a row, a tenth of a second apart.
async function still(wanted) {
  const { canvas } = window.opened();
  let before = '';
  for (let same = 0, looks = 0; same < wanted; looks += 1) {
    if (looks > 300) throw new Error('the images do not come to rest');
    const now = canvas.toDataURL();
    same = now === before ? same + 1 : 0;
    before = now;
    await new Promise((next) => { setTimeout(next, 100); });
  }
}

function segmented() {
  const viewport = window.opened();
  return Boolean(viewport && window.services.segmentationService.getSegmentationRepresentations(viewport.id).length);
}

function showing(series) {
  const viewport = window.opened();
  return Boolean(viewport && viewport.viewportStatus === 'rendered'
    && viewport.getImageIds().some((id) => id.includes(`/series/${series}/`)));
}

async function main() {
  browser = await chromium.launch({ executablePath, headless: true, args: OPTIONS });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { name, ...given } = JSON.parse(line);
    let answer;
    try {
      answer = { result: (await commands[name](given)) ?? null };
    } catch (error) {
      answer = { error: String(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  await browser.close();
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
