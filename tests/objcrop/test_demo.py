"""The demo, in miniature: it comes to its end, and its page holds what it says."""

from objcrop.cli import main


def test_the_demo_comes_to_its_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--scenes", "64", "--steps", "2"])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 3  # two sheets, and the curves
    for word in ("scene-scene", "within-box", "untrained", "objcrop pretrain --catalog demo/train.arrow"):
        assert word in page
    for made in ("train.arrow", "gt.arrow", "singles.arrow", "test.arrow", "run-within-box/last.pt"):
        assert (tmp_path / "demo" / made).exists()
