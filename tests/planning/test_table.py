"""Plans side by side."""

import json

from big_vision_ext.planning import table

FITS = dict(
  topology="v5e:8x8", slices=1, mesh={"data": 1, "fsdp": 64, "tensor": 1}, batch_size=32768,
  batch_per_chip=512.0, peak_hbm_gib=5.811, hbm_gib=15.75, fits=True, bound="hbm",
  collective_bytes_per_chip=2.4 * 2**30, step_seconds=0.5623, examples_per_second=58274.4,
  mfu_ceiling=0.6437)


def test_each_plan_is_a_row(tmp_path, capsys):
  refused = FITS | dict(fits=False, peak_hbm_gib=107.0, slices=2, step_seconds=None,
                        mfu_ceiling=None, examples_per_second=None)
  for name, plan in (("good", FITS), ("large", refused)):
    (tmp_path / f"{name}.json").write_text(json.dumps(plan))
  assert table.main([str(tmp_path / "good.json"), str(tmp_path / "large.json")]) == 0
  head, rule, good, large = capsys.readouterr().out.splitlines()
  assert head.count("|") == rule.count("|") == good.count("|") == large.count("|")
  assert good == ("| good | v5e:8x8 | 1 x 64 x 1 | 32,768 | 512 | 5.81 15.75 | 2.40 | hbm | "
                  "0.562 | 58,274 | 64% |")
  assert "v5e:8x8, 2 slices" in large and "does not fit" in large


def test_a_file_that_is_no_plan_is_named(tmp_path, capsys):
  (tmp_path / "x.json").write_text("{}")
  assert table.main([str(tmp_path / "x.json")]) == 2
  assert "x.json is no plan" in capsys.readouterr().err
  assert table.main([]) == 2
