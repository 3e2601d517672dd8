"""What msgspec must know of a form (a Struct or a dataclass) before threads read values into it."""

import msgspec


def learn(*forms: object) -> None:
    """Has msgspec learn these `forms`, and those that they hold, now. TypeError for what it cannot read.

    It learns a form when the first value is read into it, and is not done at once: a second thread that reads into the
    same form meanwhile ends the process (a segmentation fault, msgspec 0.22). A module is imported by one thread. So a
    form that `msgspec.convert` or `msgspec.json.decode` is given is learned where it is made; a `Decoder` that is made
    there has learned its own.
    """
    for form in forms:
        msgspec.json.Decoder(form)
