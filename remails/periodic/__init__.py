"""What repeats: each task is a module here with a function `run`, and `service` says when each one runs.

notify      says again what waits and nobody took
claims      ends the claims of dead hosts
orphans     finds another address for mail whose address went away
holds       holds the mail of blocked organizations and of domains whose DNS is wrong, lets go that of others
domains     looks at the sender domains' DNS again
balance     checks that what was accepted is final or waits
usage       folds what was used into sums, starts a new month of a quota
retention   forgets what is old
"""
