"One CT series of 512 x 512 x 236 from its 236 files: our reader beside SimpleITK's."
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse
import multiprocessing as mp
import platform
import statistics
import time
from pathlib import Path

from medseg_nb.core.fetch import fetch
from medseg_nb.data.dicom import CHEST_CT, read_series


def itk(folder):
    "SimpleITK: GDCM sorts the names, ImageSeriesReader reads"
    import SimpleITK as sitk
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


readers = {'ours': read_series, 'SimpleITK': itk}


def status(key):
    "A line of the kernel's account of this process, MB"
    line = next(x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(key))
    return int(line.split()[1])/1024


def measure(name, folder, runs, queue):
    "Seconds of each run with a warm cache, and the highest memory of the first, in a process of its own"
    read = readers[name]
    __import__('SimpleITK')
    read_series(folder, where=lambda h: h.InstanceNumber == 1)
    before, seconds = status('VmRSS'), []
    for _ in range(runs):
        start = time.perf_counter(), time.process_time()
        out = read(folder)
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        if len(seconds) == 1: peak = status('VmHWM') - before
        del out
    queue.put((seconds, peak))


def main(runs=7):
    data = fetch(CHEST_CT)
    folder = max((p.parent for p in data.rglob('1-1*.dcm')), key=lambda p: len(list(p.iterdir())))
    for p in folder.iterdir(): p.read_bytes()
    out, spawn = {name: [[], []] for name in readers}, mp.get_context('spawn')
    for _ in range(3):
        for name in readers:
            queue = spawn.Queue()
            worker = spawn.Process(target=measure, args=(name, folder, runs, queue))
            worker.start()
            seconds, peak = queue.get()
            worker.join()
            out[name][0] += seconds
            out[name][1].append(peak)
    print(f'512 x 512 x 236, {platform.machine()}, {os.cpu_count()} cores, {3*runs} runs each, warm cache')
    wall, cpu = ({name: [t[i] for t in seconds] for name, (seconds, _) in out.items()} for i in (0, 1))
    peak = {name: max(peaks) for name, (_, peaks) in out.items()}
    for name in readers:
        print(f'{name:10} {statistics.median(wall[name]):.3f} s (best {min(wall[name]):.3f}), '
              f'{statistics.median(cpu[name]):.3f} s of CPU, peak memory +{peak[name]:.0f} MB')
    ratio = lambda x: statistics.median(x['SimpleITK'])/statistics.median(x['ours'])
    print(f'SimpleITK / ours: {ratio(wall):.2f} by the clock, {ratio(cpu):.2f} in CPU time, '
          f"{peak['SimpleITK']/peak['ours']:.2f} in memory (the volume itself is 124 MB)")


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--runs', type=int, default=7)
    main(parser.parse_args().runs)
