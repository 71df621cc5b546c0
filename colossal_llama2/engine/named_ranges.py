"""Names under which a profile shows parts of a step that are no operation of torch's."""

HEAD_AND_LOSS = "head and loss"
OPTIMIZER = "optimizer"
