/*
 * booster.c
 *	  Runs the program that trains trees.
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
	int from; /* the pipe, or -1 */
	bool by_model; /* its lines are over: what follows is the model */
	uint32 rounds;
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
start_program(Program *program, const char *path, File input)
{
	int in = FileGetRawDesc(input);
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
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
						errmsg("could not start a process to train: %m")));
	}
}

/* Ends it, whatever it does; returns its status. */
static int
end_program(Program *program)
{
	int status = 0;

	if (program->from >= 0)
		(void) close(program->from);
	program->from = -1;
	if (program->pid > 0)
		while (waitpid(program->pid, &status, 0) < 0 && errno == EINTR)
			;
	program->pid = 0;
	return status;
}

/* Takes a line of its own. */
static void
take_line(Program *program, const char *line)
{
	unsigned int round;
	unsigned long long length;

	if (sscanf(line, "round %u", &round) == 1)
		mr_progress_done(round);
	else if (sscanf(line, "model %u %llu", &program->rounds, &length) == 2)
	{
		program->by_model = true;
		program->length = length;
	}
	else if (strncmp(line, "error ", 6) == 0)
		program->error = pstrdup(line + 6);
}

/* Takes whole lines off what was read. */
static void
take_lines(Program *program, StringInfo text)
{
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

/* Reads what is there: 0 at the end, -1 when one has to wait. */
static ssize_t
read_pipe(int pipe, char *to)
{
	ssize_t n = read(pipe, to, CHUNK);

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not read from a pipe: %m")));
	return n;
}

/* Reads what it writes, to the end. */
static void
read_output(Program *program, StringInfo text)
{
	ssize_t n;

	for (;;)
	{
		enlargeStringInfo(text, CHUNK);
		n = read_pipe(program->from, text->data + text->len);
		if (n == 0)
			break;
		if (n > 0)
		{
			text->len += n;
			take_lines(program, text);
			continue;
		}
		(void) WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_EXIT_ON_PM_DEATH,
								 program->from, -1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* What it says must be a model. */
static bytea *
check_output(const Program *program, StringInfo text, int status)
{
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
						errhint("The server's log has what it says of itself.")));
	model = palloc(VARHDRSZ + text->len);
	SET_VARSIZE(model, VARHDRSZ + text->len);
	memcpy(VARDATA(model), text->data, text->len);
	return model;
}

bytea *
mr_booster_train(const MrBoosting *boosting, uint32 *rounds)
{
	char *path = psprintf("%s/" MR_PROGRAM_NAME, pkglib_path);
	Program program = {.from = -1};
	volatile bool ended = false;
	StringInfoData text;
	int status;
	File input;

	if (access(path, X_OK) != 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("this millrace was built without XGBoost"),
						errdetail("There is no program \"%s\".", path),
						errhint("Models that XGBoost has saved can be imported.")));
	input = write_input(boosting);
	initStringInfo(&text);
	mr_progress_phase(MR_TRAINING_COMPUTING, boosting->rounds);
	PG_TRY();
	{
		start_program(&program, path, input);
		read_output(&program, &text);
		ended = true;
	}
	PG_FINALLY();
	{
		if (!ended && program.pid > 0)
			(void) kill(program.pid, SIGKILL);
		status = end_program(&program);
	}
	PG_END_TRY();
	FileClose(input);
	*rounds = program.rounds;
	return check_output(&program, &text, status);
}
