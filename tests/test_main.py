"""python -m hf_mae_robust"""

import pytest

from hf_mae_robust.__main__ import main


def test_convert_is_a_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(tmp_path / "none.pth"), str(tmp_path / "out"), "--num_attention_heads", "4"])
    assert stop.value.code == 2
    assert "none.pth" in capsys.readouterr().err
