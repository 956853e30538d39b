//! pinhole over HTTP: a queue in front of one device, that of OpenAI's and AUTOMATIC1111's interfaces and of its own, and a page.
//!
//! A job is planned before it is accepted, so that nothing is refused in the middle. One thread owns the device. Everything that a client
//! can make grow has a bound in [`limits`].
//!
//! | module | |
//! |---|---|
//! | [`limits`] | What a server takes from its clients at most. |
//! | [`fault`] | Why a request gets no picture. |
//! | [`catalogue`] | The models and LoRAs that may be named. |
//! | [`metrics`] | What Prometheus is told. |
//! | [`keys`] | Who may ask. |
//! | [`pictures`] | Pictures that clients send and get. |
//! | [`drawing`] | What a client asks for. |
//! | [`job`] | One job: what its owner sees of it, and what stops it. |
//! | [`store`] | Jobs on disk. |
//! | [`spool`] | Pictures on disk, without a store. |
//! | [`queue`] | Who is next. |
//! | [`shelf`] | Models that are open, and pipelines made of them. |
//! | [`planner`] | The thread that plans. |
//! | [`jobs`] | All jobs. |
//! | [`worker`] | The thread that owns the device. |
//! | [`server`] | What all interfaces do with a drawing. |
//! | [`http`] | Connections, bodies, and one file for each interface. |
//! | `bucket` | S3, or a folder. (This and the next three with the feature `cluster`.) |
//! | `fetched` | Models from S3. |
//! | `results` | What came of jobs from a queue of many machines. |
//! | `fleet` | Jobs from a queue of many machines. |
//! | [`options`] | The command line. |
//! | [`run`] | Start, signals, stop. |

#[cfg(feature = "cluster")]
pub mod bucket;
pub mod catalogue;
pub mod drawing;
pub mod fault;
#[cfg(feature = "cluster")]
pub mod fetched;
#[cfg(feature = "cluster")]
pub mod fleet;
pub mod http;
pub mod job;
pub mod jobs;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod options;
pub mod pictures;
pub mod planner;
pub mod queue;
#[cfg(feature = "cluster")]
pub mod results;
pub mod run;
pub mod server;
pub mod shelf;
pub mod spool;
pub mod store;
pub mod worker;
