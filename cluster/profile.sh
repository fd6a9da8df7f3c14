# mlpt-shell: what every process of Ray on a node has in its environment; sourced before `ray start` and by login shells.
. ~/venv/bin/activate
# Nothing talks to the cluster without the token in ~/.ray/auth_token.
export RAY_AUTH_MODE=token
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5
export TOKENIZERS_PARALLELISM=false
