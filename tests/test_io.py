"""Downloads verified against a real TLS server; pickles read as data; the sample."""

import codecs
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import ssl
import struct
import sys
import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import minifast.io as mio
from minifast.io import DownloadError, get_data, load_mnist, load_mnist_sample
from minifast.pickle_as_data import read_pairs

from .make_sample import sample

LESSON_URL = "http://deeplearning.net/data/mnist/mnist.pkl.gz"
TLS = Path(__file__).with_name("tls")


# ---- a server ----------------------------------------------------------------------------


class Server:
    """An https server on this machine: what it serves by path, and what it was asked for."""

    def __init__(self):
        self.files = {}
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                found = outer.files.get(self.path)
                if callable(found):
                    found(self)
                elif found is None:
                    self.send_error(404)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(found)))
                    self.end_headers()
                    self.wfile.write(found)

            def log_message(self, *args): ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def mnist_server(server, monkeypatch):
    """Two mirrors of an MNIST of 30 + 20 + 10 rows."""
    rng = np.random.default_rng(0)
    parts = []
    for part, rows in zip(mio.PARTS, (50, 50, 10, 10), strict=True):
        shape = (rows, *part.shape[1:])
        array = rng.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8)
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        packed = gzip.compress(header + array.tobytes())
        for mirror in "one", "two":
            server.files[f"/{mirror}/{part.name}"] = packed
        parts.append(mio.Part(part.name, hashlib.sha256(packed).hexdigest(), shape))
        server.files[part.name] = array
    monkeypatch.setattr(mio, "PARTS", tuple(parts))
    monkeypatch.setattr(mio, "TRAINING_ROWS", 30)
    monkeypatch.setattr(mio, "MIRRORS", (f"{server.url}/one/", f"{server.url}/two/"))
    return server


# ---- get_data ----------------------------------------------------------------------------


def test_the_lessons_dead_address_is_answered_by_the_mirrors(mnist_server, tmp_path):
    path = tmp_path / "data" / "mnist" / "mnist.pkl.gz"
    assert get_data(LESSON_URL, path) == path
    assert {Path(asked).parent.name for asked in mnist_server.asked} == {"one"}
    x, y, x_test, y_test = (mnist_server.files[part.name] for part in mio.PARTS)
    # As the lesson's own cell reads it, and as we do.
    with gzip.open(path, "rb") as file:
        by_pickle = pickle.load(file, encoding="latin-1")
    for found in by_pickle, load_mnist(path):
        expected = ((x[:30], y[:30]), (x[30:], y[30:]), (x_test, y_test))
        for (fx, fy), (ex, ey) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(fx, ex.reshape(-1, 784) / np.float32(256))
            np.testing.assert_array_equal(fy, ey)
            assert (fx.dtype, fy.dtype) == (np.float32, np.int64)


def test_what_is_there_is_not_downloaded_again(mnist_server, tmp_path):
    path = tmp_path / "mnist.pkl.gz"
    get_data(LESSON_URL, path)
    count, stamp = len(mnist_server.asked), path.stat().st_mtime_ns
    get_data(LESSON_URL, path)
    assert (len(mnist_server.asked), path.stat().st_mtime_ns) == (count, stamp)


def test_a_file_name_without_a_folder_serves(mnist_server, tmp_path, monkeypatch):
    # 0.7 failed on makedirs('').
    monkeypatch.chdir(tmp_path)
    get_data(LESSON_URL, "mnist.pkl.gz")
    assert (tmp_path / "mnist.pkl.gz").is_file()


def drop_half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"half")


def redirect(where):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", where)
        handler.end_headers()

    return answer


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(2**20))
    except OSError:  # the other side has had enough
        pass


BAD_ANSWERS = {
    "not there": (None, "404"),
    "another file": (b"something else", "not the right file, its sha256 is"),
    "nothing": (b"", "not the right file"),
    "half of it": (drop_half, "not the right file|IncompleteRead"),
    "never ending": (endless, "larger than the 10,000,000 bytes"),
    "elsewhere": (redirect("https://localhost/x"), "sends on to another place, https://localhost"),
    "without tls": (redirect("http://127.0.0.1/x"), "sends on to another place, http://127.0.0.1"),
    "a local file": (redirect("file:///etc/passwd"), "sends on|not allowed"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_mirror_is_made_good_by_the_other(mnist_server, tmp_path, name):
    mnist_server.files[f"/one/{mio.PARTS[0].name}"] = BAD_ANSWERS[name][0]
    get_data(LESSON_URL, tmp_path / "mnist.pkl.gz")
    assert len(load_mnist(tmp_path / "mnist.pkl.gz")[0][0]) == 30


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_two_bad_mirrors_leave_no_file_and_one_clear_error(mnist_server, tmp_path, name):
    answer, words = BAD_ANSWERS[name]
    for mirror in "one", "two":
        mnist_server.files[f"/{mirror}/{mio.PARTS[3].name}"] = answer
    with pytest.raises(DownloadError, match=f"(?s)the download failed.*({words})") as info:
        get_data(LESSON_URL, tmp_path / "new" / "mnist.pkl.gz")
    text = str(info.value)
    assert all(f"{mnist_server.url}/{mirror}/" in text for mirror in ("one", "two"))
    assert "load_mnist_sample" in text
    assert list(tmp_path.iterdir()) == []


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(
    mnist_server, tmp_path, monkeypatch
):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DownloadError, match="certificate verify failed"):
        get_data(LESSON_URL, tmp_path / "mnist.pkl.gz")


def test_any_other_file_is_verified_by_the_hash_that_was_given(server, tmp_path):
    server.files["/file"] = b"content"
    right = hashlib.sha256(b"content").hexdigest()
    path = get_data(f"{server.url}/file", tmp_path / "file", sha256=right.upper())
    assert path.read_bytes() == b"content"
    with pytest.raises(DownloadError, match="its sha256 is ed7002b"):
        get_data(f"{server.url}/file", tmp_path / "other", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == [path]


def test_a_redirect_on_the_same_host_is_followed(server, tmp_path):
    server.files |= {"/a": redirect(f"{server.url}/b"), "/b": b"content"}
    digest = hashlib.sha256(b"content").hexdigest()
    assert get_data(f"{server.url}/a", tmp_path / "f", sha256=digest).read_bytes() == b"content"


@pytest.mark.parametrize(
    ("url", "sha256", "words"),
    [
        ("http://example.org/f", "0" * 64, "url is not https.*try https://example.org/f"),
        ("file:///etc/passwd", "0" * 64, "url is not https"),
        ("https://example.org/f", None, "sha256 is missing"),
        ("https://example.org/f", "abc", "sha256 is missing"),
    ],
)
def test_what_cannot_be_verified_is_not_fetched(tmp_path, url, sha256, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        get_data(url, tmp_path / "f", sha256=sha256)
    assert list(tmp_path.iterdir()) == []


def test_the_hashes_are_those_of_the_four_files():
    assert [part.sha256[:8] for part in mio.PARTS] == [
        "440fcabf",
        "3552534a",
        "8d422c7b",
        "f7ae60f9",
    ]
    assert all(len(part.sha256) == 64 for part in mio.PARTS)


# ---- load_mnist --------------------------------------------------------------------------


def three_pairs(dtype=np.float32, order="C"):
    rng = np.random.default_rng(0)
    return tuple(
        (np.asarray(rng.random((n, 784)), dtype, order=order), rng.integers(0, 10, n))
        for n in (5, 3, 2)
    )


def packed(tmp_path, content, **options):
    path = tmp_path / "file.pkl.gz"
    raw = content if isinstance(content, bytes) else pickle.dumps(content, **options)
    path.write_bytes(gzip.compress(raw))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "|u1", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_numpy_wrote_them(tmp_path, protocol, dtype, order):
    pairs = three_pairs(dtype, order)
    found = load_mnist(packed(tmp_path, pairs, protocol=protocol))
    for (x, y), (fx, fy) in zip(pairs, found, strict=True):
        np.testing.assert_array_equal(x, fx)
        np.testing.assert_array_equal(y, fy)
        assert fx.dtype == x.dtype.newbyteorder("=")
        fx += 1  # they are the reader's own


def test_a_pickle_of_python_2_is_read():
    # What Python 2.7 and numpy 1.16 write for a = np.array([1, 2], '<i2') in [(a, a)], protocol 2.
    raw = (
        b"\x80\x02](cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b"
        b"\x87Rq\x02(K\x01K\x02\x85cnumpy\ndtype\nq\x03U\x02i2K\x00K\x01\x87Rq\x04(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x00\x02\x00tbq\x05h\x05\x86e."
    )
    for found in read_pairs(raw, 1), pickle.loads(raw, encoding="latin-1"):
        assert [a.tolist() for a in found[0]] == [[1, 2], [1, 2]]


@pytest.mark.full
def test_the_full_file(full_mnist, monkeypatch):
    if importlib.util.find_spec("numpy._core") is None:  # NumPy 1, and a file that NumPy 2 wrote
        monkeypatch.setitem(sys.modules, "numpy._core", np.core)
        monkeypatch.setitem(sys.modules, "numpy._core.multiarray", np.core.multiarray)
    found = load_mnist(full_mnist)
    assert [x.shape for x, _ in found] == [(50000, 784), (10000, 784), (10000, 784)]
    (x, y), (_, y_valid), _ = found
    assert (round(float(x.mean()), 4), round(float(x.std()), 4)) == (0.1304, 0.3073)
    assert y_valid[:5].tolist() == [3, 8, 6, 9, 6]
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    with gzip.open(full_mnist) as file:
        for pair, other in zip(found, pickle.load(file, encoding="latin-1"), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(pair, other, strict=True))


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function, *args):
        self.how = function, args

    def __reduce__(self):
        return self.how


CANARY = "canary-file"
MALICIOUS = {
    "os.system": Calls(os.system, f"touch {CANARY}"),
    "eval": Calls(eval, f"open({CANARY!r}, 'w')"),
    "exec": Calls(exec, f"open({CANARY!r}, 'w')"),
    "open": Calls(open, CANARY, "w"),
    "getattr": Calls(getattr, "text", "upper"),
    "import": Calls(__import__, "antigravity"),
    "a codec by name": Calls(__import__("_codecs").encode, "x", "rot13"),
    "an exception": Calls(ValueError, "x"),
    "numpy.load": Calls(np.load, CANARY),
    "numpy.memmap": Calls(np.memmap, CANARY, "f4", "w+", 0, (1,)),
    "an object array": np.array([Calls(os.system, f"touch {CANARY}")], dtype=object),
    "an array of text": np.array(["a"]),
    "an array of records": np.zeros(2, dtype="f4,i4"),
    "a new class": Calls(type, "X", (), {}),
    "an instance": threading.local,
    "a set": {1, 2},
    "a dict": {"x": 1},
    "a number": 5,
    "text": "hello",
    "None": None,
    "two pairs": three_pairs()[:2],
    "pairs of lists": (([1], [2]),) * 3,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", MALICIOUS)
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, name, protocol
):
    monkeypatch.chdir(tmp_path)
    path = packed(tmp_path, MALICIOUS[name], protocol=protocol)
    codecs.lookup("raw_unicode_escape")  # Python's own, imported when first used
    events = Audit.start()
    with pytest.raises(ValueError, match=r"(?s)is not the lesson's file.*got:.*wanted:.*fix:"):
        load_mnist(path)
    assert not Audit.stop(events)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Audit:
    """Sees imports, executed code and started programs, by Python's audit hooks."""

    FATAL = ("exec", "os.system", "os.exec", "subprocess.Popen", "import", "compile")
    seen = None
    hooked = False

    @classmethod
    def start(cls):
        if not cls.hooked:
            sys.addaudithook(cls.hook)
            cls.hooked = True
        cls.seen = []
        return cls.seen

    @classmethod
    def stop(cls, events):
        cls.seen = None
        return events

    @classmethod
    def hook(cls, event, args):
        if cls.seen is not None and event in cls.FATAL:
            cls.seen.append((event, args))


def test_the_audit_would_see_what_a_plain_unpickler_does(tmp_path):
    events = Audit.start()
    pickle.loads(pickle.dumps(Calls(eval, "1 + 1")))
    assert Audit.stop(events)


RAW = {
    "a memo of 2**31 places": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02U\x01xQ.",
    "an instance": b"(ios\nsystem\n.",
    "nothing": b"",
    "no end": b"\x80\x02N",
    "too much": b"\x80\x02" + b"N0" * 2000 + b"N.",
    "a state for a name": b"\x80\x02c_codecs\nencode\n}N\x86b.",
    "attributes for a name": b"\x80\x02c_codecs\nencode\nN}\x86b.",
    "a state for ndarray": b"\x80\x02cnumpy\nndarray\nK\x01b.",
    "an array without a state": b"\x80\x02cnumpy\nndarray\n)R.",
    "not enough bytes": pickle.dumps(np.zeros(4, "f4"), 2).replace(b"K\x04\x85", b"K\x05\x85"),
    "a negative shape": pickle.dumps(np.zeros(4, "f4"), 2).replace(
        b"K\x04\x85", b"J\xfc\xff\xff\xff\x85"
    ),
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "a billion laughs": b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b".",
    "an empty stack": b"\x80\x02R.",
    "text instead": b"hello world",
}


@pytest.mark.parametrize("name", RAW)
def test_a_pickle_that_does_not_hold_together_is_refused(tmp_path, name):
    import _codecs

    with pytest.raises(ValueError, match="is not the lesson's file"):
        load_mnist(packed(tmp_path, RAW[name]))
    assert not hasattr(_codecs.encode, "__dict__")


@pytest.mark.slow
def test_no_mutation_of_a_good_file_crashes_or_changes_more_than_numbers(tmp_path):
    good = pickle.dumps(three_pairs(), protocol=2)
    rng = np.random.default_rng(0)
    head = np.flatnonzero(rng.random(len(good)) < 0.05)  # anywhere
    early = rng.integers(0, 250, 1000)  # and often among the instructions
    refused = 0
    for place in [*head[:1000], *early]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.integers(8)
        try:
            found = read_pairs(bytes(bad), 3)
        except ValueError:
            refused += 1
            continue
        for array in chain(*found):
            assert type(array) is np.ndarray and array.dtype.kind in "fiu"
            array.tobytes()  # its memory is its own and is there
    assert refused > 300


def test_gzip_faults_are_told_in_words(tmp_path, monkeypatch):
    whole = gzip.compress(pickle.dumps(three_pairs()))
    path = tmp_path / "mnist.pkl.gz"
    for content in b"", b"no gzip", whole[:-20], whole[:30], whole[:-6] + b"\0\0\0\0\0\0":
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"no whole gzip file|not the lesson's file"):
            load_mnist(path)


def test_a_gzip_bomb_is_stopped_at_the_size_of_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(mio, "MOST_UNPACKED", 10_000_000)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(ValueError, match="unpacks to more than the 10,000,000 bytes"):
        load_mnist(path)


# ---- the sample --------------------------------------------------------------------------


def test_the_sample_is_balanced_and_in_the_lessons_shape():
    (x, y), (x_valid, y_valid), (x_test, y_test) = load_mnist_sample()
    assert (x.shape, x_valid.shape, x_test.shape) == ((5000, 784), (1000, 784), (0, 784))
    assert np.bincount(y).tolist() == [500] * 10
    assert np.bincount(y_valid).tolist() == [100] * 10
    assert (x.dtype, y.dtype, y_test.dtype) == (np.float32, np.int64, np.int64)
    assert (x.min(), x.max()) == (0, np.float32(255 / 256))


def test_the_sample_is_mnist(full_mnist):
    expected = sample(load_mnist(full_mnist))
    with np.load(Path(mio.__file__).with_name("data") / "mnist_sample.npz") as found:
        assert set(found) == set(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert all(found[name].dtype == np.uint8 for name in found)


@pytest.mark.full
def test_the_parts_put_together_are_the_lessons_file(full_mnist):
    digits = load_mnist(full_mnist)
    (x, y), (x_valid, y_valid), (x_test, y_test) = digits
    parts = [
        np.rint(np.concatenate([x, x_valid]) * 256).astype(np.uint8).reshape(-1, 28, 28),
        np.concatenate([y, y_valid]).astype(np.uint8),
        np.rint(x_test * 256).astype(np.uint8).reshape(-1, 28, 28),
        y_test.astype(np.uint8),
    ]
    for part, array in zip(mio.PARTS, parts, strict=True):
        assert array.shape == part.shape
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        again = mio._read_idx(gzip.compress(header + array.tobytes(), 1), part)
        assert np.array_equal(again, array)
    buffer = io.BytesIO()
    mio._write_digits(mio._lesson_digits(parts), buffer)
    again = pickle.loads(gzip.decompress(buffer.getvalue()))
    for pair, other in zip(digits, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(pair, other, strict=True))
