#!/usr/bin/env bash
# One stage of continued pretraining over the nodes of a hostfile. Fill in the paths, copy, run on the first node:
#     bash train.example.sh                      # with `colossalai run`
#     LAUNCHER=launch bash train.example.sh      # with tools/launch.py: stops everything when one part fails, and restarts
# docs/launching.md says when to take which, and tools/doctor.py checks the hosts beforehand. Every node needs this folder, the environment, the model and the data under the same paths, and ssh without a password
# from the first node to every node (itself included).
#
# `colossalai run` pastes the script's arguments and your environment into a remote shell line, unquoted. So: no spaces or
# quotes in the paths below, and secrets are taken out of the environment first, because a failed run prints all of it.
set -euo pipefail

PROJECT_NAME="chinese-inject"
PARENT_SAVE_DIR="/path/to/checkpoints"
PARENT_TENSORBOARD_DIR="/path/to/tensorboard"
PARENT_CONFIG_FILE="/path/to/configs"
PRETRAINED_MODEL_PATH="/path/to/expanded-model"
DATASET=(
    "/path/to/spliced_tokenized_output_arrow"
)
HOSTFILE="hostfile"          # see hostfile.example
NPROC_PER_NODE=8
FORWARD_ENV=""               # with tools/launch.py: variables the other nodes get from here, as NCCL_SOCKET_IFNAME,NCCL_IB_HCA
LAUNCHER="${LAUNCHER:-colossalai}"

cd "$(dirname "$0")"
PATH="$PWD/.venv/bin:$PATH"  # colossalai run starts the word `torchrun`

for path in "$HOSTFILE" "$PRETRAINED_MODEL_PATH" "${DATASET[@]}"; do
    [[ -e "$path" ]] || { echo "error: $path does not exist; fill in the paths at the top of this script" >&2; exit 2; }
done
for value in "$PWD" "$PROJECT_NAME" "$PARENT_SAVE_DIR" "$PARENT_TENSORBOARD_DIR" "$PARENT_CONFIG_FILE" \
             "$PRETRAINED_MODEL_PATH" "${DATASET[@]}"; do
    [[ "$value" =~ ^[A-Za-z0-9_./@:+=-]+$ ]] || { echo "error: '$value' has characters that colossalai run would not pass on whole" >&2; exit 2; }
done

RUN_NAME="${PROJECT_NAME}-$(date +%Y-%m-%d-%H-%M-%S)"
mkdir -p "$PARENT_CONFIG_FILE"

TRAIN=(
    train.py
    --pretrained "$PRETRAINED_MODEL_PATH"
    --dataset "${DATASET[@]}"
    --plugin zero2
    --mixed_precision bf16
    --save_interval 1000
    --save_dir "$PARENT_SAVE_DIR/$RUN_NAME"
    --tensorboard_dir "$PARENT_TENSORBOARD_DIR/$RUN_NAME"
    --config_file "$PARENT_CONFIG_FILE/$RUN_NAME.yaml"
    --num_epochs 1
    --micro_batch_size 8
    --accumulation_steps 1
    --lr 1e-4
    --max_length 4096
    --weight_decay 0.1
    --gradient_clipping 1.0
    --use_grad_checkpoint
    --use_flash_attn
)

if [[ "$LAUNCHER" == launch ]]; then
    exec python tools/launch.py --hostfile "$HOSTFILE" --nproc_per_node "$NPROC_PER_NODE" --forward_env "$FORWARD_ENV" \
        --max_restarts 3 -- "${TRAIN[@]}"
fi

# `colossalai run` takes every line of the file for a host name: it gets a checked copy without comments and options.
PLAIN_HOSTFILE="$PARENT_CONFIG_FILE/$RUN_NAME.hosts"
SSH_PORT="$(python tools/plain_hostfile.py --hostfile "$HOSTFILE" --output "$PLAIN_HOSTFILE" --nproc_per_node "$NPROC_PER_NODE")"

# A clean environment: what the launcher exports to every node is this and nothing else.
exec env -i HOME="$HOME" PATH="$PATH" LANG="${LANG:-C.UTF-8}" OMP_NUM_THREADS=8 \
    colossalai run --nproc_per_node "$NPROC_PER_NODE" --hostfile "$PLAIN_HOSTFILE" ${SSH_PORT:+"$SSH_PORT"} \
    --master_port 30013 "${TRAIN[@]}"
