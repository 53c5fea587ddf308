"""Which settings and inputs of a PS3 model do not go together?"""

from typing import Any

import jax

from big_vision_ext.models import selection


def fields(model: Any) -> None:
  """Raises ValueError, naming the field, if settings of a `ps3_stages.PS3Stages` do not fit."""
  selection.check_scales(model.scales, model.patch_size)
  if model.pool_type != "map":
    raise ValueError(f"pool_type={model.pool_type!r}: PS3 pools by attention, set it to 'map'.")
  if model.pool_width not in (0, model.width) and not model.adapter_hidden:
    raise ValueError(
      f"pool_width={model.pool_width} differs from width={model.width}: set adapter_hidden, the "
      "width of the adapter between them."
    )
  side = model.scales[-1] // model.patch_size
  if model.posemb_fit == "crop" and min(model.posemb_grid) < side:
    raise ValueError(
      f"posemb_fit='crop' takes positions out of posemb_grid={model.posemb_grid}, which must hold "
      f"the {side} x {side} patches of scales[-1]={model.scales[-1]}."
    )
  if model.selection_maps not in ("first", "each"):
    raise ValueError(
      f"selection_maps={model.selection_maps!r} is unknown; it is 'first' or 'each'."
    )
  if model.budget_rule not in ("split", "cells"):
    raise ValueError(f"budget_rule={model.budget_rule!r} is unknown; it is 'split' or 'cells'.")
  if model.budget_rule == "cells" and model.max_select_num_each_scale is not None:
    raise ValueError(
      f"max_select_num_each_scale={model.max_select_num_each_scale} splits the budget over "
      "scales, but budget_rule='cells' buys cells at all of them; leave it None or take 'split'."
    )
  if model.look_policy and sum(model.budget()) < 2:
    raise ValueError(
      f"look_policy spends the tokens of a look on two in training, of which max_select_num="
      f"{model.max_select_num} is too small for: give it at least 2."
    )
  if not all(-model.depth <= i < model.depth for i in model.select_layers):
    raise ValueError(
      f"select_layers={model.select_layers} must name blocks of depth={model.depth}, 0 to "
      f"{model.depth - 1}."
    )
  if model.highres_branch and model.selection_size < model.selection_kernel:
    raise ValueError(
      f"selection_size={model.selection_size} must be at least selection_kernel="
      f"{model.selection_kernel}."
    )


def tiles(model: Any, image: jax.Array, tiles: tuple[jax.Array, jax.Array]) -> None:
  """Raises ValueError if a view and tiles cannot stand for an image of the largest scale.

  Args:
    model: a `ps3_stages.PS3Stages`.
    image: the view of the whole, (b, y, x, 3).
    tiles: pixels (b, n, side, side, 3) and the cells they are of (b, n).
  """
  if model.look_policy or model.budget_rule != "split":
    raise ValueError(
      f"tiles hold what one look at the region takes of every scale by itself, not what "
      f"look_policy={model.look_policy}, budget_rule={model.budget_rule!r} may choose: train those "
      "on whole images (input.tiles=0)."
    )
  side = model.patch_size * model.scales[-1] // model.scales[0]
  if tiles[0].shape[2:4] != (side, side):
    raise ValueError(
      f"tiles are {tiles[0].shape[2:4]} pixels, but a cell of the lowest grid is {side} x {side} "
      f"pixels of scales[-1]={model.scales[-1]}: set input.tile_size={side}."
    )
  least = model.scales[-2]
  if image.shape[1] != image.shape[2] or image.shape[1] < least:
    raise ValueError(
      f"the view beside the tiles is {image.shape[1]} x {image.shape[2]} pixels, expected a "
      f"square of at least scales[-2]={least}: set input.view_size."
    )
  # The input may leave out up to a row of cells (input_pipeline.tiles), never more.
  cells, budget = tiles[1].shape[1], model.budget()[-1]
  tokens = (model.scales[-1] // model.scales[0]) ** 2
  count = model.cells[0] ** 2
  if (cells if cells == count else cells - model.cells[0] + 1) * tokens < budget:
    raise ValueError(
      f"{cells} tiles may hold fewer tokens than the {budget} that are selected at the largest "
      f"scale: set input.tiles={min(count, -(-budget // tokens) + model.cells[0] - 1)} or more."
    )
