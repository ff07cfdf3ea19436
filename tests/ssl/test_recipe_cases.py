"""Recipe files that once ended in a traceback: the folder `cases/fuzz` beside the real images."""

import pytest

from objcrop.cli import main
from objcrop.formats import index


def test_recipe_files_that_failed_end_in_one_sentence(test_data, tmp_path, capsys):
    cases = test_data.parent / "cases" / "fuzz"
    if not cases.is_dir():
        pytest.skip("no cases beside the real images")
    index(cases / "coco_images", "folder")[0].save(tmp_path / "c.arrow")
    files = sorted(cases.glob("recipe_*.yaml"))
    assert len(files) > 10
    for file in files:
        with pytest.raises(SystemExit) as stop:
            main(
                ["pretrain", "--recipe", str(file), "--catalog", str(tmp_path / "c.arrow"), "-o", str(tmp_path / "run")]
            )
        said = capsys.readouterr().err.strip()
        assert stop.value.code in (1, 2) and len(said.splitlines()) == 1 and said.startswith("objcrop: "), (file, said)
        assert stop.value.code == 2 or "is not YAML" in said
