"""Tiny folders in the real layouts of the three data sets, with recordings that are generated."""

import csv
import json
import os
import wave

import numpy as np

OLD = 1_700_000_000 * 10**9
"""An mtime long ago, so that a file's stamp can be trusted."""


def recording(path, number, *, seconds=0.1, rate=16_000):
    """Write a tone of its own for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frequency = 200 + 37 * number
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        tone = 9_000 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
        file.writeframes(tone.astype("<i2").tobytes())
    os.utime(path, ns=(OLD, OLD))


def vegas(root, counts, *, beside=(), seconds=0.1):
    """Make a folder like VEGAS: ``counts`` recordings of each class."""
    number = 0
    for name, count in counts.items():
        rows = []
        for place in range(count):
            recording(root / name / "audios" / f"video_{place:05d}.wav", number, seconds=seconds)
            number += 1
            rows.append([f"yt{number}", place, place + 5])
            for kind, suffix in (("img", ".jpg"), ("videos", ".mp4")):
                if kind in beside:
                    (root / name / kind).mkdir(parents=True, exist_ok=True)
                    (root / name / kind / f"video_{place:05d}{suffix}").write_bytes(b"")
        if "info" in beside:
            with (root / name / "video_info.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["YTID", "start_second", "end_second"], *rows])
    return root


def esc50_official(root, classes, *, each=2):
    """Make a folder like ESC-50's own: ``each`` clips of each class in each of five folds."""
    rows = []
    for target, name in enumerate(classes):
        for fold in range(1, 6):
            for take in range(each):
                file = f"{fold}-{target}{take}-A-{target}.wav"
                recording(root / "audio" / file, len(rows))
                rows.append([file, fold, target, name, "False", target, "A"])
    (root / "meta").mkdir()
    with (root / "meta" / "esc50.csv").open("w", newline="") as out:
        header = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
        csv.writer(out).writerows([header, *rows])
    return root


def esc50_folders(root, classes, *, each=2):
    """Make a folder like ESC-50 with a folder and a JSON file for each fold."""
    root.mkdir(exist_ok=True)
    (root / "class_labels.json").write_text(json.dumps({name: label for label, name in enumerate(classes)}))
    number = 0
    for fold in range(5):
        listed = {}
        for target, name in enumerate(classes):
            for take in range(each):
                file = f"{fold}-{target}{take}-A-{target}.wav"
                recording(root / "audio" / f"fold{fold:02d}" / file, number)
                listed[file] = [name]
                number += 1
        (root / f"fold{fold:02d}.json").write_text(json.dumps(listed))
    return root


VGGSOUND = ("playing acoustic guitar", "Dog barking", "cattle, bovinae cowbell")


def vggsound(root, *, each=6, classes=VGGSOUND, gone=1):
    """Make a folder like VGGSound: of each class a third is for testing, and the last ``gone`` clips are not there."""
    rows = []
    for number, label in enumerate(classes):
        for place in range(each):
            split = "test" if place % 3 == 0 else "train"
            ytid, start = f"-y_{number}{place}", 30 * place
            rows.append([ytid, start, label, split])
            if place < each - gone:
                recording(root / split / "audios" / f"{ytid}_{start:06d}.wav", len(rows))
    with (root / "vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root
