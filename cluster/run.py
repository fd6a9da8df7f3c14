"""The one file that `ray submit cluster/aws.yaml cluster/run.py -- pretrain quickstart` uploads and runs on the head.

mlpt itself is installed on every node by the cluster file's `setup_commands`.
"""

from mlpt.cli import main

if __name__ == "__main__":
    main()
