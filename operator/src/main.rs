//! The program `operator`: starts it, and stops it when told to.

use std::process::ExitCode;

use operator::{
    cli::{self, Cli, Command},
    logging, plan, probe_url, program, shutdown,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Exit code of a wrong command line.
const EXIT_COMMAND_LINE: u8 = 2;
/// Exit code when a second signal does not let it finish.
const EXIT_CUT_SHORT: i32 = 130;

fn main() -> ExitCode {
    match Cli::read(std::env::args_os()) {
        Ok(Cli { command: Command::Run(flags) }) => run(*flags),
        Ok(Cli { command: Command::Plan(flags) }) => plan::command(&flags),
        Ok(Cli { command: Command::Probe(flags) }) => probe(&flags),
        Err(error) => error.exit(),
    }
}

fn probe(flags: &cli::Probe) -> ExitCode {
    match probe_url::probe(&flags.url, std::time::Duration::from_secs(flags.within)) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: cli::Run) -> ExitCode {
    if let Err(error) = logging::init(flags.log_format, &flags.log_level) {
        eprintln!("{error}");
        return ExitCode::from(EXIT_COMMAND_LINE);
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        error!("there is another TLS provider already");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        let (Ok(terminate), Ok(interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            error!("signals cannot be watched");
            return ExitCode::FAILURE;
        };
        let (trigger, shutdown) = shutdown::channel();
        tokio::spawn(watch(terminate, interrupt, trigger));
        match program::run(flags, shutdown).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                error!("{error}");
                ExitCode::FAILURE
            }
        }
    });
    // requests that nobody waits for any more do not hold up the end
    runtime.shutdown_background();
    code
}

/// The first signal lets everything come to its end, the second does not wait.
async fn watch(mut terminate: Signal, mut interrupt: Signal, trigger: shutdown::Trigger) {
    let first = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!("{first}: handing over");
    trigger.request();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    warn!("second signal: not waiting any longer");
    std::process::exit(EXIT_CUT_SHORT);
}
