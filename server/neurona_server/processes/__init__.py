"""Server processes below a supervisor: several on one port, or one that is restarted.

supervisor     starts, restarts, reloads and stops the workers
worker_handle  one worker, as the supervisor sees it
worker         the server process that a supervisor starts
channel        messages between supervisor and worker
quarantine     which models new workers do not load, after crashes
ports          reserves the ports that the workers share
signals        SIGTERM, SIGINT and SIGHUP, also without a supervisor
snapshot       the metrics of one process at one moment
multiprocess_collector  merges the snapshots of all processes into one page of metrics
"""
