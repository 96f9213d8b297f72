//! Child processes that never outlive this one.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;

type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// Starts a program that is killed by the system when this process ends, however it ends.
///
/// `setpriv` asks for that, and then becomes the program, under the same process id. What the system watches is the
/// *thread* that started the child, and a test's threads come and go: one thread of this crate, which never ends, starts them all.
/// `change` adds arguments and the like.
pub fn spawn(program: &str, change: impl FnOnce(&mut Command)) -> std::io::Result<Child> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, incoming) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("testbed-starter".into())
            .spawn(move || {
                for (mut command, answer) in incoming {
                    let _ = answer.send(command.spawn());
                }
            })
            .unwrap();
        Mutex::new(orders)
    });

    let mut command = if Path::new("/usr/bin/setpriv").exists() {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--pdeathsig", "KILL", program]);
        command
    } else {
        Command::new(program)
    };
    change(&mut command);
    let (answer, started) = mpsc::sync_channel(1);
    starter.lock().unwrap().send((command, answer)).unwrap();
    started.recv().unwrap()
}
