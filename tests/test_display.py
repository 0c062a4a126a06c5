"""What sets, accuracies and data sets show of themselves in a notebook and at a prompt; errors there are one line."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dmjax
from dmjax.common.errors import NonFiniteLoss, UserError
from dmjax.common.signals import Interrupted
from dmjax.data import synthetic_set
from dmjax.evaluation.accuracy import Accuracy


def made(classes, ipc, size=8, channels=1, **further):
    """A set whose images are all of one grey: that of their class."""
    levels = np.linspace(0, 255, classes).astype(np.uint8)[:, None, None, None, None]
    pixels = np.broadcast_to(levels, (classes, ipc, size, size, channels))
    names = [f"class {c}" for c in range(classes)]
    return synthetic_set.from_pixels(pixels, np.zeros(channels), np.ones(channels), names, **further)


def image_in(text):
    [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_set_is_one_line_at_a_prompt():
    assert repr(made(3, 2)) == "SyntheticSet(6 images of 8x8, 2 per class, 3 classes)"
    labels = np.full((3, 2, 3), 1 / 3)
    several = made(3, 2, channels=3, factor=2, labels=labels, metadata={"iterations": 500})
    facts = "6 images of 8x8x3, 2 per class, 3 classes, each unpacks into 4, soft labels, 500 iterations"
    assert repr(several) == f"SyntheticSet({facts})"


def test_a_set_shows_its_images_with_one_column_per_class():
    text = made(3, 2)._repr_html_()
    assert "<div>6 images of 8x8, 2 per class, 3 classes; one column per class</div>" in text
    image = image_in(text)
    assert image.size == (8 * (2 + 3 * 10), 8 * (2 + 2 * 10))  # 8 times: gaps of 2 pixels, images of 8
    centres = [[image.getpixel((8 * (6 + 10 * c), 8 * (6 + 10 * i))) for c in range(3)] for i in range(2)]
    assert centres == [[0, 127, 255]] * 2


def test_of_a_large_set_a_part_is_shown():
    text = made(100, 12, size=64, channels=3)._repr_html_()
    assert "; one column per class; a part is shown" in text
    assert image_in(text).size == (2 + 10 * 66, 2 + 10 * 66)
    assert max(image_in(made(2, 1, size=600)._repr_html_()).size) == 820


def test_what_a_file_says_is_shown_as_text():
    """Its metadata may be anybody's."""
    assert "<script>" not in made(2, 1, metadata={"iterations": "<script>"})._repr_html_()


def test_an_accuracy_shows_its_error_and_each_network():
    accuracy = Accuracy.of([0.5, 0.75], top5=[0.875, 1.0])
    assert repr(accuracy) == "Accuracy(62.5 +- 12.5 %, top-5 93.8 +- 6.2 %, 2 networks)"
    text = accuracy._repr_html_()
    assert "test accuracy 62.5 +- 12.5 %, top-5 93.8 +- 6.2 % (2 networks)" in text
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", text.split("<tbody>")[1])
    assert rows == [("test accuracy (%)", "<td>50.0</td><td>75.0</td>"), ("top-5 (%)", "<td>87.5</td><td>100.0</td>")]


def test_a_data_set_is_one_line_at_a_prompt():
    images, labels = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3
    dataset = dmjax.Dataset.from_arrays(images, labels, images[:3], labels[:3], name="black")
    assert repr(dataset) == "Dataset('black', 6 training and 3 test images of 8x8x1, 3 classes)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such folder"), "UserError: no such folder"),
        (NonFiniteLoss("the loss is nan"), "NonFiniteLoss: the loss is nan"),
        (
            Interrupted(2),
            "interrupted by SIGINT; the same call goes on from the last checkpoint, if there is a workdir",
        ),
    ],
)
def test_ipython_shows_one_line_in_place_of_a_traceback(error, line):
    assert error._render_traceback_() == [line]


def test_a_script_shows_its_traceback():
    code = "import dmjax\ndmjax.Config(ipd=3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert "UserError: Config has no setting 'ipd'; did you mean 'ipc'?" in done.stderr


def test_importing_the_package_imports_nothing_heavy():
    heavy = "jax", "numpy", "PIL", "matplotlib", "IPython", "tqdm", "html"
    code = f"import dmjax, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
