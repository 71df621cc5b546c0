"""Start a script on every host of a hostfile: tools/launch.py --hostfile F --nproc_per_node N -- train.py ..."""

import sys
from functools import partial

from colossal_llama2 import cli
from colossal_llama2.engine.nodes.launch import LaunchSettings, main, take_script

if __name__ == "__main__":
    own, script = take_script(sys.argv)
    sys.argv = own
    cli.run(LaunchSettings, partial(main, script=script))
