"""Where tensors lie in memory, on which the last bits of what is computed from them may depend.

Matrix and dot products of float32 add in another order where their operands do not begin at a whole vector register
(MKL on some processors), and tensors that libraries map from a file begin wherever the file has them. What is loaded is
therefore brought to where torch would have allocated it: equal values then give equal results, however they came.
"""

from torch import Tensor, nn

ALIGNMENT = 64  # bytes; torch allocates at multiples of it


def aligned(tensor: Tensor) -> Tensor:
    """`tensor` itself where it begins at a multiple of `ALIGNMENT`, otherwise a copy that does."""
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor


def align_weights(model: nn.Module) -> None:
    """Move every CPU parameter and buffer of `model` that is not `aligned`, in place; tied ones stay tied."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = aligned(tensor.data)
