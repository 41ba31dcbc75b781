"""What `spanet doctor` looks at: packages, the machine, stores, and one batch of an experiment.

Nothing here is imported from the rest of the project before it is needed: the doctor has to work
where torch, torchvision or lightning do not.
"""
