//! The program `gateway`: reads its configuration, starts the gateway, and stops it when told to.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use gateway::{
    config_file::{ConfigFile, Configuration},
    logging,
    reload::{EVERY, Watcher, check_root},
    secrets::Directory,
    server::{Gateway, Options, StartError},
};
use gateway_core::settings::Settings;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// Exit code of a wrong configuration or command line.
const EXIT_CONFIGURATION: u8 = 2;
/// Exit code when a second signal cuts the drain short.
const EXIT_CUT_SHORT: i32 = 130;

/// MQTT to AMQP 1.0 protocol gateway for fleets of devices in front of Azure IoT Hub or any AMQP 1.0 broker.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  gateway --config gateway.yaml --secrets /etc/gateway/secrets
  gateway --config gateway.yaml --check                            report every error of the file, open no port
  RUST_LOG=gateway=debug gateway --config gateway.yaml             one line for each connect, refusal, disconnect

Signals: SIGTERM lets devices go in pace (orders of the admin port, else limits.drainPerSecond, within
limits.drainTimeout) and exits with 0; SIGINT lets all go at once; a second one exits at once.
Exit codes: 0 stopped as told, 1 failed while running, 2 the configuration or a secret is wrong."
)]
struct Arguments {
    /// Configuration, YAML: the gateway half of ProtocolGateway.spec
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Directory of secrets: DIR/<secretName>/<key>
    #[arg(long, value_name = "DIR", default_value = "secrets")]
    secrets: PathBuf,

    /// Check the configuration, and the secrets if --secrets is a directory; print OK or every error; open no port
    #[arg(long)]
    check: bool,

    /// Threads that serve devices [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    cores: Option<u16>,

    /// Shape of log lines
    #[arg(long, value_enum, default_value = "text")]
    log_format: logging::Format,

    /// What to log, as in RUST_LOG (which wins)
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = logging::init(arguments.log_format, &arguments.log_level) {
        eprintln!("{error}");
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    let mut file = ConfigFile::new(&arguments.config);
    let Configuration { settings, hash } = match read_configuration(&arguments, &mut file) {
        Ok(configuration) => configuration,
        Err(errors) => {
            for error in errors {
                eprintln!("{error}");
            }
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    if arguments.check {
        println!("OK");
        return ExitCode::SUCCESS;
    }
    raise_open_files(&settings);
    run(settings, (file, hash), &arguments)
}

/// Everything that is wrong with file and secrets, or what to run by.
fn read_configuration(arguments: &Arguments, file: &mut ConfigFile) -> Result<Configuration, Vec<String>> {
    let configuration = file.read()?;
    if arguments.check && arguments.secrets.is_dir() {
        Watcher::new(configuration.settings.clone().into(), Directory::new(&arguments.secrets)).load()?;
    }
    if !arguments.check {
        check_root(&arguments.secrets).map_err(|error| vec![error])?;
    }
    Ok(configuration)
}

fn run(settings: Settings, config: (ConfigFile, String), arguments: &Arguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime for signals");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        // before anything is served: a signal must never end it the hard way
        let (Ok(terminate), Ok(interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            error!("signals cannot be watched");
            return ExitCode::FAILURE;
        };
        match start(settings, config, arguments) {
            Ok(gateway) => until_told(gateway, terminate, interrupt).await,
            Err(code) => code,
        }
    })
}

fn start(settings: Settings, config: (ConfigFile, String), arguments: &Arguments) -> Result<Gateway, ExitCode> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = arguments.cores.map_or(available, usize::from);
    let options = Options { config: Some(config), cores, secrets: arguments.secrets.clone(), look_every: EVERY };
    Gateway::start(settings, &options).map_err(|error| match error {
        StartError::Secrets(_) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_CONFIGURATION)
        }
        error => {
            error!("{error}");
            ExitCode::FAILURE
        }
    })
}

/// Serves until a signal, then drains; a second signal does not wait.
async fn until_told(mut gateway: Gateway, mut terminate: Signal, mut interrupt: Signal) -> ExitCode {
    let in_pace = tokio::select! {
        _ = terminate.recv() => {
            info!("SIGTERM: letting devices go in pace");
            true
        }
        _ = interrupt.recv() => {
            info!("SIGINT: letting all devices go");
            false
        }
        core = gateway.core_ended() => {
            error!(?core, "a core ended by itself");
            gateway.stop();
            return ExitCode::FAILURE;
        }
    };
    let stopped = tokio::task::spawn_blocking(move || if in_pace { gateway.finish() } else { gateway.stop() });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        stopped = stopped => {
            if !stopped.is_ok_and(|whole| whole) {
                error!("ended, but not in order");
                return ExitCode::FAILURE;
            }
            info!("drained");
            return ExitCode::SUCCESS;
        }
    }
    warn!("second signal: not waiting any longer");
    std::process::exit(EXIT_CUT_SHORT);
}

/// As many open files as the system allows; says so if that is too few.
fn raise_open_files(settings: &Settings) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    let needed = u64::from(settings.limits.connections_max) + 256;
    if current.is_some_and(|current| current < needed) {
        warn!(open_files = current, needed, "fewer open files allowed than limits.connectionsMax needs");
    }
}
