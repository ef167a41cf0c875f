"""The page of the demo in a browser: upload, click, look."""

import io
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BeitForImageClassification

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.demo.inspector import load_inspector
from tests.demo_models import save_model
from tests.helpers import photos

demo_app = pytest.importorskip("hf_mae_robust.demo.app", reason="gradio is not installed")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt-get install chromium)")

PATCH, SIDE = 8, 64
SCALE = 448 // SIDE  # of the pictures
WAIT = 300_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("one.png", 0), ("two.png", 1)):
        Image.fromarray(photos(1, 120, seed=seed)[0][:90]).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / "short.png").write_bytes((folder / "one.png").read_bytes()[:2000])
    return folder


@contextmanager
def served(folder, temporary):
    """The address of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(temporary))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        app = demo_app.build_app(load_inspector(str(folder)), "my-model")
        _, url, _ = demo_app.launch(app, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        yield url
        app.close()


@contextmanager
def visited(browser, url):
    """A page that asks nothing of any other address."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(WAIT)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("#input input[type=file]", state="attached")
    yield page
    context.close()
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with served(folder, tmp_path_factory.mktemp("gradio")) as url:
        yield url


@pytest.fixture
def page(browser, url):
    with visited(browser, url) as page:
        yield page


def source(page, name: str) -> str | None:
    image = page.query_selector(f"#{name} img")
    return image and image.get_attribute("src")


def wait_for_another(page, name: str, before: str | None) -> None:
    page.wait_for_function(
        "([name, before]) => { const image = document.querySelector(`#${name} img`);"
        " return image && image.getAttribute('src') !== before && image.complete && image.naturalWidth; }",
        arg=[name, before],
    )


def picture(page, name: str) -> np.ndarray:
    """`(64, 64, 3)`: what is shown, at the model's size."""
    pixels = np.asarray(Image.open(io.BytesIO(page.request.get(source(page, name)).body())).convert("RGB"))
    assert pixels.shape == (SIDE * SCALE, SIDE * SCALE, 3)
    return pixels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]


def gray_patches(pixels: np.ndarray) -> np.ndarray:
    """`(8, 8)`, bool."""
    return (pixels.reshape(8, PATCH, 8, PATCH, 3) == 128).all(axis=(1, 3, 4))


def upload(page, path) -> None:
    before = source(page, "reconstruction")
    page.set_input_files("#input input[type=file]", path)
    wait_for_another(page, "reconstruction", before)
    # gradio shows the old pictures until the new ones are there; the count comes with them.
    page.wait_for_function("() => /patches/.test(document.querySelector('#count')?.innerText)")


def click_patch(page, row: int, column: int) -> None:
    before, box = source(page, "masked"), page.locator("#masked img").bounding_box()
    x, y = (column + 0.5) * box["width"] / 8, (row + 0.5) * box["height"] / 8
    page.locator("#masked img").click(position={"x": x, "y": y})
    wait_for_another(page, "masked", before)


def expected_reconstruction(folder, path, mask: np.ndarray) -> np.ndarray:
    """By the model alone, `(64, 64, 3)` uint8."""
    model = ViTMAERobustForPreTraining.from_pretrained(folder, attn_implementation="eager").eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    values = processor(Image.open(path), return_tensors="pt").pixel_values
    model.config.mask_ratio = float(mask.mean())
    image = model.reconstruct(values, noise=torch.from_numpy(mask.reshape(1, -1)).float())[0]
    return (image.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()


def test_an_upload_is_masked_and_rebuilt_as_the_model_does_it(page, folder, files):
    upload(page, files / "one.png")
    mask = gray_patches(picture(page, "masked"))
    assert mask.sum() == 48 and "48 of 64" in page.inner_text("#count")
    assert torch.equal(torch.from_numpy(mask), load_inspector(str(folder)).random_mask((8, 8), 0.75, 0))
    shown = picture(page, "reconstruction")
    np.testing.assert_allclose(shown, expected_reconstruction(folder, files / "one.png", mask), rtol=0, atol=1)
    for name in ("attention", "components"):
        assert picture(page, name).std() > 5
    upload(page, files / "two.png")
    assert np.abs(picture(page, "reconstruction").astype(int) - shown).mean() > 5


def test_a_click_masks_this_patch_and_another_shows_it_again(page, folder, files):
    upload(page, files / "one.png")
    empty, before = source(page, "reconstruction"), source(page, "masked")
    page.click("#clear")
    wait_for_another(page, "masked", before)
    wait_for_another(page, "reconstruction", empty)
    original = picture(page, "masked")
    assert not gray_patches(original).any() and np.array_equal(picture(page, "reconstruction"), original)
    # Corners and the middle, so that rows cannot be taken for columns.
    expected = np.zeros((8, 8), dtype=bool)
    for row, column in ((0, 0), (0, 7), (7, 1), (3, 5)):
        rebuilt = source(page, "reconstruction")
        click_patch(page, row, column)
        wait_for_another(page, "reconstruction", rebuilt)
        expected[row, column] = True
        assert np.array_equal(gray_patches(picture(page, "masked")), expected)
    assert "4 of 64" in page.inner_text("#count")
    shown = picture(page, "reconstruction")
    np.testing.assert_allclose(shown, expected_reconstruction(folder, files / "one.png", expected), rtol=0, atol=1)
    changed = (shown != original).reshape(8, PATCH, 8, PATCH, 3).any(axis=(1, 3, 4))
    assert np.array_equal(changed, expected)
    click_patch(page, 0, 7)
    expected[0, 7] = False
    assert np.array_equal(gray_patches(picture(page, "masked")), expected)


def set_number(page, name: str, value: str) -> None:
    """And wait for the picture."""
    before = source(page, "masked")
    page.locator(f"#{name} input[type=number]").fill(value)
    page.locator(f"#{name} input[type=number]").press("Tab")
    wait_for_another(page, "masked", before)


@pytest.mark.slow  # a click is quick
def test_the_same_seed_gives_the_same_picture(page, files):
    upload(page, files / "one.png")
    first = {name: picture(page, name) for name in ("masked", "reconstruction")}
    set_number(page, "seed", "5")
    other = picture(page, "masked")
    assert not np.array_equal(other, first["masked"]) and gray_patches(other).sum() == 48
    set_number(page, "seed", "0")
    for name, pixels in first.items():
        assert np.array_equal(picture(page, name), pixels)
    set_number(page, "ratio", "0.25")
    fewer = gray_patches(picture(page, "masked"))
    # The patches with the most noise, of the same noise.
    assert fewer.sum() == 16 and not (fewer & ~gray_patches(first["masked"])).any()
    before = source(page, "masked")
    page.click("#other")
    wait_for_another(page, "masked", before)
    assert not np.array_equal(gray_patches(picture(page, "masked")), fewer)


@pytest.mark.parametrize(("name", "reason"), [("broken.png", "not_an_image"), ("short.png", "truncated")])
def test_what_is_no_image_gives_a_sentence_and_leaves_no_pictures(page, files, name, reason):
    upload(page, files / "one.png")
    page.set_input_files("#input input[type=file]", files / name)
    toast = page.get_by_text(re.compile("cannot be decoded"))
    toast.first.wait_for()
    assert reason in toast.first.inner_text()
    for picture_of in ("masked", "reconstruction", "attention", "components"):
        assert page.query_selector(f"#{picture_of} img") is None


def test_without_its_image_there_are_no_pictures(page, files):
    upload(page, files / "one.png")
    page.click("#input button[aria-label*='lear' i], #input button[aria-label*='emove' i]")
    for name in ("masked", "reconstruction", "attention", "components"):
        page.wait_for_selector(f"#{name} img", state="detached")
    assert page.get_by_text("There is no image yet").count() == 0


def test_without_an_image_a_button_says_what_to_do(page):
    page.click("#clear")
    page.get_by_text("There is no image yet").first.wait_for()


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "with meta"])
def test_files_of_the_server_cannot_be_asked_for(page, files, meta):
    url = page.url + "gradio_api/call/open"
    request = page.request.post(url, data={"data": [{"path": str(files / "one.png"), **meta}, 0.5, 0]})
    answer = page.request.get(f"{url}/{request.json()['event_id']}").text()
    assert "event: error" in answer and "image.png" not in answer


def test_an_example_is_opened(page):
    page.locator("#examples button, #examples .gallery-item").nth(1).click()
    wait_for_another(page, "reconstruction", None)
    assert gray_patches(picture(page, "masked")).sum() == 48


def test_a_classifier_names_its_five_most_likely_classes(browser, files, tmp_path):
    folder = save_model(tmp_path / "classifier", "classifier")
    values = AutoImageProcessor.from_pretrained(folder)(Image.open(files / "one.png"), return_tensors="pt").pixel_values
    model = BeitForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        shares, numbers = model(values).logits[0].softmax(dim=0).topk(5)
    with served(folder, tmp_path / "gradio") as url, visited(browser, url) as page:
        page.set_input_files("#input input[type=file]", files / "one.png")
        wait_for_another(page, "prepared", None)
        text = page.inner_text("#classes")
        assert picture(page, "attention").std() > 5 and page.query_selector("#masked") is None
    found = re.findall(r"(\w+)\s+(\d+)%", text)
    assert [name for name, _ in found] == [model.config.id2label[number] for number in numbers.tolist()]
    assert [int(share) for _, share in found] == pytest.approx([100 * share for share in shares.tolist()], abs=1)


def test_an_encoder_has_no_reconstruction(browser, files, tmp_path):
    folder = save_model(tmp_path / "encoder", "encoder")
    with served(folder, tmp_path / "gradio") as url, visited(browser, url) as page:
        assert "no decoder" in page.inner_text("body")
        page.set_input_files("#input input[type=file]", files / "one.png")
        wait_for_another(page, "components", None)
        assert picture(page, "components").std() > 5 and page.query_selector("#reconstruction") is None
