"""What to do about each warning and each error of the log; `generate.py` puts it into log-events.md.

Where a line says what to do itself, in its `fix`, this says what it means for the site.
"""
# ruff: noqa: INP001 - beside a script, not in a package

REMEDIES = {
    # --- start, stop and defects
    "A defect of the gateway": (
        "Something happened that nobody foresaw. What it was about is answered with INTERNAL_ERROR or tried again, all "
        "else goes on. Report it with its `exception`."
    ),
    "Task ended": "A part of the gateway cannot go on for this `reason`; the gateway stops in order, and what started "
    "it starts it again. Correct what the reason names.",
    "Task ended unexpectedly": "A defect; the gateway stops in order and is started again. Report it with the lines "
    "before it.",
    "Task failed": "A defect; the gateway stops in order and is started again. Report it with its `exception`.",
    "Left to the broker, which sends them again": "More was under way than could be finished within "
    "DRAIN_TIMEOUT_S. Nothing is lost; raise it if snapshots of QoS 0 matter.",
    "Not published before the end": "The broker was away or slow at the stop. An offline status comes as the will; the "
    "end of an alert is said after the next start only with SPOOL_DIR.",
    "Not closed in time; what was to be stored may be lost": "The disk of SPOOL_DIR hangs. Check it, and the volume "
    "behind it.",
    "Second signal: ending at once": "Somebody did not want to wait. Unacknowledged snapshots come again.",
    "The service manager could not be told how the gateway stands": "With `Type=notify` systemd ends a gateway that it "
    "hears nothing of. In a container leave NOTIFY_SOCKET out of the environment, or give the container that socket.",
    "A setting may not do what is meant": "The gateway runs. Correct the setting that `reason` names; "
    "`edge-gateway config check` says the same.",
    # --- cameras of `edge-gateway camera`
    "A camera cannot be read; it is tried again": "Said once for each `reason`, and again after ten minutes. Check the "
    'camera, its network, and the address with user and password; "A camera is read" follows when it is back.',
    "A file is passed over": "Of `edge-gateway camera` with files; the others go on. Mend the file, or take it away.",
    "A camera's snapshot was not sent": "Newer ones follow. Where the broker refuses it, let its user write to "
    "`topic`; where it is too slow, look at the broker and the network.",
    "The file of the health is not written": "The cameras go on, but a health check sees an old file. See `reason`; a "
    "full disk, or a folder that was taken away.",
    # --- configuration
    "A file of the configuration changes all the time; it is read as it is": "Something writes gateway.yaml or a "
    "model.yaml without end. Find out what; write a file beside it and rename it.",
    "Some changes need a restart": "What was read again holds, except for what `settings` and `models` name.",
    "The configuration is not taken over, the one before it stays": "The gateway serves as before. Correct what "
    "`where` and `reason` name; the file is read again when it changes.",
    # --- the broker
    "Waiting for the broker": "No connection can be made; it is tried again, ever less often. Nothing is lost that "
    "the broker keeps.",
    "Lost the session with the broker": "It is connected anew at once. When it comes again and again: the network, the "
    "broker's log, or a second client with the same client id.",
    "No session with the broker": "The broker, or TLS, refuses the gateway. `edge-gateway doctor` looks into it.",
    "The broker has forgotten the session; messages that it held for the gateway are lost": "Let the broker keep "
    "sessions on disk, for longer than it or the gateway is ever away (AIO_MQTT_SESSION_EXPIRY).",
    "Messages can be lost: subscribed with QoS 0 only": "The broker grants less than was asked for. What comes while "
    "the gateway is away is lost.",
    "The broker cannot take a subscription": "What it is for, such as commands over MQTT, is off until that is mended.",
    "The broker refuses a subscription": "What it is for, such as commands over MQTT, is off until the client may "
    "subscribe.",
    "The broker has no retained messages: the status and the state of models are seen by those who listen": "Those "
    "who come later see nothing until the next change.",
    "The broker sent what cannot be read": "The connection is made anew. Report it with its `exception` and the kind "
    "of the broker.",
    "Renewed credentials cannot be used, the ones before hold": "Correct the file before the old credentials end; it "
    "is looked at again when it changes.",
    "A defect of the gateway: renewed credentials are not read; it tries again": "Restart the gateway before the old "
    "credentials end, and report it with its `exception`.",
    "Not stored before the end": "Answers that were to be written to SPOOL_DIR at the stop; their snapshots are "
    "unacknowledged and come again.",
    "The broker refused an answer from the disk; it is not sent": "One answer of an outage is lost, its snapshot is "
    "settled. Allow the topic at the broker.",
    "The spool cannot be opened": "Answers of an outage wait in memory only. Correct SPOOL_DIR and restart.",
    "The spool is damaged and was set aside; the answers in it are not sent": "See the runbook on the spool; the "
    "gateway goes on with a new one.",
    "The spool is full; answers wait in memory, and snapshots behind them": "Nothing is lost yet: the broker keeps "
    "what is not acknowledged.",
    "The disk of the spool does not work; answers wait in memory, and those it has may be sent twice": "Nothing is "
    "lost yet. Receivers tell repeated answers by their result_id.",
    # --- Triton
    "Waiting for Triton": "Snapshots wait until their deadline. It is said again when the reason changes.",
    "An endpoint of Triton is given up until it answers again": "The others answer, with as much less room; it is "
    "looked at again and again, and used once it serves what they serve.",
    "An endpoint of Triton could not be asked whether it is live": "A defect of the gateway, with its trace; the "
    "endpoint counts as away, and is asked again.",
    "A task of the pool of Tritons has failed": "A defect of the gateway, with its trace. The endpoint that the task "
    "names is looked after again at the next look; if it stays away, restart the gateway.",
    "An endpoint of Triton cannot be brought to what the others serve": "It takes no requests for this model until it "
    "loads it; that is tried again. Usually it has less memory than the others, or sees another model volume.",
    "An endpoint of Triton could not be put back after a refused load": "Another one has refused the load, and this "
    "one does not serve again what it did before. The others answer; it is tried again.",
    "A model is gone from Triton; loading it again": "Triton was restarted, or somebody else unloads models there. "
    "Growing `model_repairs_total`: see Triton's log.",
    "A model is refused": "Triton does not load this variant, or it does not fit its model.yaml; while it is to "
    "answer, it is tried again every half minute.",
    "A version cannot be unloaded": "It takes memory at Triton; it is tried again. See Triton's log.",
    "Somebody else has loaded versions": "They are unloaded, for they would answer in place of what was rolled out. "
    "Load models through the gateway only.",
    "An input tensor is larger than all shared memory, such tensors go in the requests": "It works, and costs more.",
    "There is no room for more shared memory, further input tensors go in the requests": "It works, and costs more.",
    "Input tensors go to Triton in the requests, for shared memory cannot be used": "It works, and costs more. Triton "
    "has to see the /dev/shm of the gateway.",
    "Renewed credentials for Triton cannot be used, the ones before hold": "Correct the file before the old "
    "credentials end; it is looked at again when it changes.",
    # --- models and their files
    "A folder has too many files; changes of the rest are not seen": "Put nothing but models into the repository.",
    "Backend 'candle' is no variant here and is mapped to the variant 'torch'": "Nothing, if that is what is meant.",
    "File events cannot be had; new models are looked for all the time": "New models are found as well, a little later "
    "and at some cost.",
    "The model repository cannot be read; what serves goes on": "Check the volume of MODEL_REPOSITORY; nothing new "
    "is found until it is back.",
    # --- snapshots and answers
    "No result for a snapshot": "The sender was told, with the same `code` and `fix`. What each code means: errors.md.",
    "A dead letter is lost": "The payload of one failed snapshot is not on DEAD_LETTER_TOPIC; its error message is.",
    "A defect in judging a new version": "The rollout goes on by what else is known. Report it with its `exception`.",
    "A defect of the gateway: an answer was given up": "Its snapshot is unacknowledged and comes again with the next "
    "session. Report it with its `exception`.",
    "A defect of the gateway: what was published is not shown": "The message itself is with the broker; the console or "
    "Home Assistant lacks it. Report it with its `exception`.",
    "A defect with a new version": "The stable version has answered. Report it with its `exception`.",
    "A defect with a version that was asked in shadow": "The answer was not touched. Report it with its `exception`.",
    "A new version failed on a snapshot, the stable one answers it": "Nothing: enough of them roll the version back.",
    "A variant fails again and again, it is not asked for now": "Another variant answers, or the snapshots fail. It "
    "is tried again by itself; see Triton's log for the model.",
    "Pillow has another memory layout than the fast resizer knows: Pillow resizes, which takes longer": "Install the "
    "gateway with the versions of its lock.",
    "The broker refused a message": "Nobody receives it; its snapshot is settled. `what` says which message it was. "
    "Allow the topic at the broker.",
    "The broker refused an alert": "Nobody receives it, and it is not tried again. Allow the topic at the broker.",
    # --- rollouts
    "A defect of the gateway ends a rollout": "The stable version serves. Report it with its `exception`.",
    "A model is gone from the repository and served no more": "Put its folder back if that was not meant.",
    "A model.yaml is refused": "This model does not serve. Correct the file; it is read again when it changes.",
    "A rollout is rolled back": "The version before serves again. `reason` says which gate it failed; drop a better "
    "one under a higher number.",
    "A version cannot serve again": "What served before the restart is not on the disk as it was; the next best "
    "serves. `reason` names the file.",
    "A version is refused": "The version before goes on. `step` says how far it came; drop a better one under a higher "
    "number.",
    "No time was left to warm up for a batch": "The first batches of this size may take long. Nothing else.",
    "Not remembered": "MODEL_STATE_DIR does not take it: after a restart the gateway knows less. Make it writable.",
    "Not rolled back": "The version that serves goes on. Correct what `reason` names, and command it again.",
    "Rolled back": "Nothing: `by` asked for it. The version it replaces is not tried again.",
    "The gateway that ran rollouts has stopped, hangs or is cut off": "This one goes on with them. See what has become "
    "of the other.",
    "The models cannot be read; what serves goes on": "Check MODEL_REPOSITORY; it is read again when it changes.",
    "The version before is not drained": "It is unloaded all the same; a snapshot under way may have failed.",
    "This gateway runs no rollouts any more": "Another one does, or the lease cannot be had: the next lines say which.",
    "What another gateway rolls out cannot be followed": "This gateway serves what it did. Its model volume differs "
    "from the other's; `reason` names what is missing.",
    "What is remembered of models cannot be read": "Check MODEL_STATE_DIR; the gateway begins as if it knew nothing.",
    "What lies on disk is not taken over": "The files of the version that serves were changed. Triton goes on with "
    "what it has loaded; drop changes as a new version.",
    "What was remembered of a model cannot be used": "The model begins as if it were new. The file is kept.",
    "Whether this gateway may run rollouts cannot be settled": "`reason` says why. It goes on as it can by itself; "
    "with several gateways at one model volume, mend it before the next drop.",
    # --- HTTP, commands and what is announced
    "Command dropped: too many wait": "Somebody sends commands faster than they are carried out.",
    "Command refused": "Whoever sent it was told, with the same `code`. UNAUTHORIZED again and again: somebody tries "
    "without the token.",
    "Too many tries without the right token": "Who tries has to wait. If it is nobody you know, shut him out.",
    "No answer to a command: its response topic cannot be used": "It was carried out, if it could be. Correct the "
    "response topic of the sender.",
    "Retained command ignored: it would come again at each start": "Send commands without the retain flag.",
    "The answer to a command was not published": "The command was carried out; the state of the model tells.",
    "The state of a model was not published": "It is published at the next change, and after the next connection.",
    "Home Assistant was not told": "Allow the gateway to publish below HOME_ASSISTANT_TOPIC.",
    "Home Assistant hears of no more cameras": "More cameras than are announced; or somebody invents device ids. One "
    "that is silent for 10 minutes gives way.",
    # --- workers
    "A frame cannot be read, and the channel ends": "The worker is started again. Report it; front and workers have to "
    "be of one version.",
    "A worker cannot be started": "`reason` is the system's: memory, processes or descriptors are at their limit. It "
    "is tried again.",
    "A worker did not answer over HTTP": "The request was answered with 503. When it comes again: the worker is busy "
    "or hangs.",
    "A worker hangs": "It is killed and started again; its snapshots come again. Report it with the lines before.",
    "A worker has ended and is started again": "`ending` says how; `killed by SIGKILL` is mostly lack of memory.",
    "A worker stays away, the others take its cameras": "See why it does not start; the others have more to do.",
    "Workers did not end in time, and are killed": "More was under way than could be finished within DRAIN_TIMEOUT_S; "
    "it comes again.",
    # --- traces
    "More spans come than can be sent, further ones are dropped": "Traces have gaps; the gateway is not slowed down.",
    "Traces cannot be sent, they are dropped": "Check OTEL_EXPORTER_OTLP_ENDPOINT; the gateway is not slowed down.",
}
