/*
 * kafka.c
 *	  Kafka as a source.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "fmgr.h"
#include "funcapi.h"
#include "source/source.h"

PG_FUNCTION_INFO_V1(millrace_validate_source);

Datum
millrace_validate_source(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	return (Datum) 0;
}

const MrSourceKind mr_kafka_source = {.name = "kafka"};
