#!/usr/bin/env python3
"""Pictures from a prompt by diffusion-negative sampling and its neighbours, without training.

    python train_free_sample.py "a red car"
    python train_free_sample.py "a red car" --method dns
    python train_free_sample.py "a cat and a dog" --method auto-dnp
    python train_free_sample.py "a cat and a dog" --negative "a bear" --compare --images 4
    python train_free_sample.py --from outputs/a-red-car-cfg-0.png

The equations are those of arXiv:2411.05473; ANSWER is arXiv:2508.02973.
"""

from dnp.app.command_line import main

if __name__ == "__main__":
    main()
