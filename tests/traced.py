"""What stands for CUDA graphs on a CPU: a traced function over the same buffers, which fixes every number that the host
knew and reads tensors where they were.
"""

from torch.fx.experimental.proxy_tensor import make_fx


class Traced:
    """As graphs with one memory do, a replay spoils what the others have left."""

    def __init__(self):
        self.left = []

    def __call__(self, run, device):
        graph = make_fx(run)()
        out = graph().clone()
        self.left.append(out)

        def replay():
            for other in self.left:
                other.fill_(float("nan"))
            return out.copy_(graph())

        return replay
