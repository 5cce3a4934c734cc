"""Where generated requests are bent towards what is there, so that more than refusals is seen."""

from typing import Any

import schemathesis
from schemathesis import Case, HookContext

from names import MOVED, STEADY

#: They end processes, go back in time or own the VM: not the one that the others ask.
MOVERS = {
    "start_vm",
    "stop_vm",
    "restart_vm",
    "pause_vm",
    "resume_vm",
    "suspend_vm",
    "rollback",
    "undo",
    "begin_transaction",
}


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    operation = case.operation.definition.raw.get("operationId")
    # What the phase of coverage says where any text will do.
    if (case.path_parameters or {}).get("vm") == "0":
        case.path_parameters["vm"] = MOVED if operation in MOVERS else STEADY
    # It ends with the VM's process.
    if operation == "console" and case.query:
        case.query.pop("follow", None)
