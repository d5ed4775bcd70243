/*
 * booster.c
 *	  Runs the program that trains trees, several at once when there are several trainings.
 *
 * The library starts threads, takes memory that PostgreSQL does not count, and ends its process when something is wrong.  So it runs
 * in a process that the backend starts, with nothing of the backend but a temporary file to read and a pipe to write to.  The backend
 * waits for that pipe as for a client: it can be cancelled, and kills the program then.  When the backend dies, the kernel does.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/compat.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "model/booster.h"
#include "model/model.h"
#include "model/program/program.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"

#define CHUNK (256 * 1024)

/* ---- its input -------------------------------------------------------------------------------------------- */

/* A file that is written from its begin to its end. */
typedef struct Output
{
	File file;
	off_t at;
	StringInfoData chunk;
} Output;

static void
flush_output(Output *output)
{
	int written = FileWrite(output->file, output->chunk.data, output->chunk.len, output->at,
							PG_WAIT_EXTENSION);

	if (written != output->chunk.len)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not write a temporary file for a training: %m")));
	output->at += written;
	resetStringInfo(&output->chunk);
}

static void
write_bytes(Output *output, const void *bytes, Size length)
{
	if (output->chunk.len + length > CHUNK)
		flush_output(output);
	if (length > CHUNK)
	{
		const char *rest = bytes;

		for (; length > CHUNK; length -= CHUNK, rest += CHUNK)
		{
			appendBinaryStringInfo(&output->chunk, rest, CHUNK);
			flush_output(output);
		}
		bytes = rest;
	}
	appendBinaryStringInfo(&output->chunk, bytes, (int) length);
}

/* Writes what the program reads; see program.h. */
static File
write_input(const MrBoosting *boosting)
{
	Output output = {.file = OpenTemporaryFile(false)};
	float *values = palloc(boosting->nfeatures * sizeof(float));
	Size strings = 0;
	MrProgramInput header = {.magic = MR_PROGRAM_MAGIC,
							 .nparams = boosting->nparams / 2,
							 .nfeatures = boosting->nfeatures,
							 .rounds = boosting->rounds,
							 .patience = boosting->patience,
							 .rows = boosting->rows,
							 .rows_to_stop = boosting->rows_to_stop};

	for (int i = 0; i < boosting->nparams; i++)
		strings += strlen(boosting->params[i]) + 1;
	for (int i = 0; i < boosting->nfeatures; i++)
		strings += strlen(boosting->features[i]) + 1;
	header.labels = MAXALIGN(sizeof(header) + strings);
	header.values = header.labels + boosting->rows * sizeof(float);
	header.size = header.values + boosting->rows * boosting->nfeatures * sizeof(float);

	initStringInfo(&output.chunk);
	write_bytes(&output, &header, sizeof(header));
	for (int i = 0; i < boosting->nparams; i++)
		write_bytes(&output, boosting->params[i], strlen(boosting->params[i]) + 1);
	for (int i = 0; i < boosting->nfeatures; i++)
		write_bytes(&output, boosting->features[i], strlen(boosting->features[i]) + 1);
	write_bytes(&output, "\0\0\0\0\0\0\0", header.labels - sizeof(header) - strings);
	write_bytes(&output, boosting->labels, boosting->rows * sizeof(float));
	for (uint64 row = 0; row < boosting->rows; row++)
	{
		boosting->row(boosting->context, row, values);
		write_bytes(&output, values, boosting->nfeatures * sizeof(float));
		if (row % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
	}
	flush_output(&output);
	return output.file;
}

/* ---- the program ------------------------------------------------------------------------------------------ */

/* A program that runs, and what it has written. */
typedef struct Program
{
	pid_t pid; /* 0: none */
	MemoryContext context; /* of this training alone */
	int training; /* which one it is */
	File input;
	int from; /* the pipe */
	StringInfoData text; /* of its output, what has not been taken */
	bool by_model; /* its lines are over: what follows is the model */
	uint32 done; /* rounds so far */
	uint32 rounds; /* that the model has */
	Size length;
	char *error;
} Program;

/* In the child: nothing but what may be called between fork and exec. */
static void
become_program(const char *path, int input, int output, pid_t parent)
{
	char *const arguments[] = {MR_PROGRAM_NAME, NULL};
	sigset_t none;

	for (int signal_number = 1; signal_number < NSIG; signal_number++)
		(void) signal(signal_number, SIG_DFL);
	(void) prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	if (dup2(input, STDIN_FILENO) < 0 || dup2(output, STDOUT_FILENO) < 0)
		_exit(1);
#ifdef SYS_close_range
	if (syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0) != 0)
#endif
		for (int fd = STDERR_FILENO + 1; fd < (int) sysconf(_SC_OPEN_MAX); fd++)
			(void) close(fd);
	sigemptyset(&none);
	(void) sigprocmask(SIG_SETMASK, &none, NULL);
	(void) execv(path, arguments);
	_exit(127);
}

static void
start_program(Program *program, const char *path)
{
	int in = FileGetRawDesc(program->input);
	pid_t parent = getpid();
	sigset_t before;
	sigset_t all;
	int ends[2];

	if (in < 0 || pipe(ends) != 0)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not make a pipe: %m")));
	program->from = ends[0];
	(void) fcntl(ends[0], F_SETFL, O_NONBLOCK);
	/* A handler of ours in the child would act on the backend's state. */
	sigfillset(&all);
	(void) sigprocmask(SIG_SETMASK, &all, &before);
	program->pid = fork();
	if (program->pid == 0)
		become_program(path, in, ends[1], parent);
	(void) sigprocmask(SIG_SETMASK, &before, NULL);
	(void) close(ends[1]);
	if (program->pid < 0)
	{
		program->pid = 0;
		(void) close(ends[0]);
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
						errmsg("could not start a process to train: %m")));
	}
}

/* Ends it, whatever it does; returns its status. */
static int
end_program(Program *program)
{
	int status = 0;

	(void) close(program->from);
	while (waitpid(program->pid, &status, 0) < 0 && errno == EINTR)
		;
	program->pid = 0;
	return status;
}

/* Takes a line of its own. */
static void
take_line(Program *program, const char *line)
{
	unsigned long long length;

	if (sscanf(line, "model %u %llu", &program->rounds, &length) == 2)
	{
		program->by_model = true;
		program->length = length;
	}
	else if (strncmp(line, "error ", 6) == 0)
		program->error = MemoryContextStrdup(program->context, line + 6);
	else
		(void) sscanf(line, "round %u", &program->done);
}

/* Takes whole lines off what was read. */
static void
take_lines(Program *program)
{
	StringInfo text = &program->text;
	char *end;
	int taken = 0;

	while (!program->by_model &&
		   (end = memchr(text->data + taken, '\n', text->len - taken)) != NULL)
	{
		*end = '\0';
		take_line(program, text->data + taken);
		taken = end + 1 - text->data;
	}
	memmove(text->data, text->data + taken, text->len - taken);
	text->len -= taken;
}

/* Reads what is there; true: that was all. */
static bool
read_output(Program *program)
{
	StringInfo text = &program->text;
	ssize_t n;

	for (;;)
	{
		enlargeStringInfo(text, CHUNK);
		n = read(program->from, text->data + text->len, CHUNK);
		if (n == 0)
			return true;
		if (n < 0)
		{
			if (errno != EAGAIN && errno != EINTR)
				ereport(ERROR,
						(errcode_for_file_access(), errmsg("could not read from a pipe: %m")));
			return false;
		}
		text->len += n;
		take_lines(program);
	}
}

/* Waits until one of the programs has written or ended. */
static void
wait_for_output(const Program *programs, int n)
{
	WaitEventSet *set = mr_wait_event_set(n + 2);
	WaitEvent event;

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < n; i++)
		if (programs[i].pid > 0)
			AddWaitEventToSet(set, WL_SOCKET_READABLE, programs[i].from, NULL, NULL);
	(void) WaitEventSetWait(set, -1, &event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(set);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* What it says must be a model. */
static bytea *
check_output(const Program *program, int status)
{
	const StringInfoData *text = &program->text;
	bytea *model;

	if (WIFSIGNALED(status))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("the program that trains was terminated by signal %d: %s",
							   WTERMSIG(status), strsignal(WTERMSIG(status))),
						WTERMSIG(status) == SIGKILL
							? errhint("Perhaps memory has run out: see the kernel's log.")
							: 0));
	if (program->error != NULL)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("XGBoost cannot train: %s", program->error)));
	if (status != 0 || !program->by_model || (Size) text->len != program->length)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("the program that trains ended without a model (exit code %d)",
							   WEXITSTATUS(status)),
						/* that of the dynamic linker */
						WEXITSTATUS(status) == 127
							? errhint("Perhaps libxgboost is not installed: the server's log says.")
							: errhint("The server's log has what it says of itself.")));
	model = palloc(VARHDRSZ + text->len);
	SET_VARSIZE(model, VARHDRSZ + text->len);
	memcpy(VARDATA(model), text->data, text->len);
	return model;
}

/* Starts a training. */
static void
start_training(Program *program, const MrBoosterWork *work, int training, const char *path)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace booster",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	MrBoosting boosting = {0};

	*program = (Program){.context = context, .training = training};
	initStringInfo(&program->text);
	work->give(work->context, training, &boosting);
	program->input = write_input(&boosting);
	start_program(program, path);
	MemoryContextSwitchTo(old);
}

/* Hands over what a program that has ended has trained. */
static void
finish_training(Program *program, const MrBoosterWork *work)
{
	int status = end_program(program);

	FileClose(program->input);
	work->take(work->context, program->training, check_output(program, status), program->rounds);
	MemoryContextDelete(program->context);
}

/* Keeps so many programs running until all trainings are done. */
static void
run_programs(Program *programs, const MrBoosterWork *work, const char *path)
{
	uint64 done = 0; /* rounds of those that have ended */
	int started = 0;
	int ended = 0;

	while (ended < work->trainings)
	{
		uint64 going = 0;

		for (int i = 0; i < work->at_once && started < work->trainings; i++)
			if (programs[i].pid == 0)
				start_training(&programs[i], work, started++, path);
		wait_for_output(programs, work->at_once);
		for (int i = 0; i < work->at_once; i++)
		{
			bool at_end;

			if (programs[i].pid == 0)
				continue;
			at_end = read_output(&programs[i]);
			*(at_end ? &done : &going) += programs[i].done;
			if (at_end)
			{
				finish_training(&programs[i], work);
				ended++;
			}
		}
		mr_progress_done(done + going);
	}
}

void
mr_booster_train(const MrBoosterWork *work)
{
	char *path = psprintf("%s/" MR_PROGRAM_NAME, pkglib_path);
	Program *programs = palloc0(work->at_once * sizeof(Program));

	if (access(path, X_OK) != 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("this millrace was built without XGBoost"),
						errdetail("There is no program \"%s\".", path),
						errhint("Models that XGBoost has saved can be imported.")));
	/* Its threads sleep while they wait for each other: when others need the processors too, spinning takes ten times as long. */
	(void) setenv("OMP_WAIT_POLICY", "passive", 0);
	mr_progress_phase(MR_TRAINING_COMPUTING, work->rounds);
	PG_TRY();
	{
		run_programs(programs, work, path);
	}
	PG_FINALLY();
	{
		/* all have ended, but for an error */
		for (int i = 0; i < work->at_once; i++)
			if (programs[i].pid > 0)
				(void) kill(programs[i].pid, SIGKILL);
		for (int i = 0; i < work->at_once; i++)
			if (programs[i].pid > 0)
				(void) end_program(&programs[i]);
	}
	PG_END_TRY();
}
