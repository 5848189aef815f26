"Learn, explore and prove medical image segmentation in Jupyter."
import os

# Threads that wait for their turn must not spin: on shared cores that was seen to make training 4 to 12 times slower.
# OpenMP reads this when torch is first imported; a value that is already there is kept.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
