#!/bin/bash
# A Slurm of this machine alone: as much of sbatch, srun, sacct and scancel as submitit asks for. Its state
# lies in $FAKE_SLURM: pids/<job>, and ends/<job> with the state in which a job has ended.
state=${FAKE_SLURM:?}
case $(basename "$0") in
sbatch)
    if [[ -e $state/refuse ]]; then
        cat "$state/refuse" >&2
        exit 1
    fi
    echo "${@: -1}" >>"$state/submitted"
    job=$(wc -l <"$state/submitted")
    export SLURM_JOB_ID=$job SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
    (
        setsid bash "${@: -1}" </dev/null >/dev/null 2>&1 &
        echo $! >"$state/pids/$job"
        wait $! && echo COMPLETED >"$state/ends/$job.new" || echo FAILED >"$state/ends/$job.new"
        mv -n "$state/ends/$job.new" "$state/ends/$job"
    ) </dev/null >/dev/null 2>&1 &
    echo "Submitted batch job $job"
    ;;
srun)
    while [[ $1 == -* ]]; do
        [[ $1 == --output || $1 == --error ]] && shift
        shift
    done
    exec "$@"
    ;;
sacct)
    echo "JobID|State|NodeList"
    while (($#)); do
        if [[ $1 == -j ]]; then
            echo "$2|$(cat "$state/ends/$2" 2>/dev/null || echo RUNNING)|here"
            shift
        fi
        shift
    done
    ;;
scancel)
    for job in "$@"; do
        echo CANCELLED >"$state/ends/$job"
        kill -KILL -- "-$(cat "$state/pids/$job")"
    done
    ;;
esac
