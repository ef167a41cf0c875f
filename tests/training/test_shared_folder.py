"""Whether all processes see the same output folder is found out before the first step."""

import pytest

from hf_mae_robust.pretrain import make_parser
from tests.processes import ROOT, offline
from tests.runs import tiny_run

# A disk for each process, and no patience with it.
APART = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import hf_mae_robust.training.shared_folder as shared_folder
from hf_mae_robust.pretrain import main
shared_folder.WAIT_S = 0.2
Path(os.environ["RANK"]).mkdir()
os.chdir(os.environ["RANK"])
main()
"""


def test_folders_that_are_not_shared_are_refused_before_the_first_step(photos_dir, tmp_path):
    (tmp_path / "apart.py").write_text(APART)
    words = tiny_run(photos_dir, "--per_device_train_batch_size", "4", "--output_dir", "out")
    refused = offline().run([tmp_path / "apart.py", *words], tmp_path / "printed", 2, folder=tmp_path)
    assert refused.codes == [2, 2], refused.output
    assert "--output_dir out of the first process is not there for 1 of 2 processes (on " in refused.stderr
    assert "'loss'" not in refused.stdout and not (tmp_path / "0" / "out").exists()


def test_a_folder_a_machine_is_refused(photos_dir, tmp_path, capsys):
    """It never worked: only the first process of all writes."""
    with pytest.raises(SystemExit) as end:
        make_parser().parse([*tiny_run(photos_dir), "--output_dir", str(tmp_path), "--save_on_each_node"])
    assert end.value.code == 2 and "all machines have to share --output_dir" in capsys.readouterr().err
